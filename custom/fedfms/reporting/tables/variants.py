"""Variants of a method, as a table names them: "" or what was changed, as in "L=4"."""

from __future__ import annotations

import math


def parse_variant(text: str) -> tuple[str, int | float | str] | None:
    """Name and value of a variant; None for one that is a name alone, or "", the method as it is.

    "L=4" -> ("L", 4), "beta=1e-3" -> ("beta", 0.001), "act=gelu" -> ("act", "gelu"), "-PT" -> None.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    return (name, _value(value)) if name and equals and value else None


def variant_order(text: str) -> tuple[str, float, str]:
    """What variants are sorted by: the name, then the number, then the text; the method as it is comes first."""
    name, _, value = (part.strip() for part in text.partition("="))
    number = _value(value)
    return name, math.inf if isinstance(number, str) else float(number), text


def _value(text: str) -> int | float | str:
    """A finite number, or the text itself; `1_0` and `nan` are texts."""
    if "_" in text or not text.isascii():
        return text
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        try:
            return number if math.isfinite(number) else text
        except OverflowError:
            return text
    return text
