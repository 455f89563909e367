"""Numbers with units, for people."""


def size_text(nbytes: float) -> str:
    """`44.1 MB`; below 100 kB `18.9 kB` or `12 bytes`; `0.0 MB` for zero."""
    if 0 < nbytes < 1e3:
        return f"{nbytes:.0f} bytes"
    return f"{nbytes / 1e3:.3g} kB" if 0 < nbytes < 1e5 else f"{nbytes / 1e6:,.1f} MB"


def duration_text(seconds: float) -> str:
    """`1.5 h`, `12 min` or `45 s`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
