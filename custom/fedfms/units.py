"""Numbers with their units, as people read them."""

from __future__ import annotations


def size_text(nbytes: float) -> str:
    """`44.1 MB`; of a small number, `18.9 kB` or `12 bytes`; of none, `0.0 MB`."""
    if 0 < nbytes < 1e3:
        return f"{nbytes:.0f} bytes"
    return f"{nbytes / 1e3:.3g} kB" if 0 < nbytes < 1e5 else f"{nbytes / 1e6:,.1f} MB"
