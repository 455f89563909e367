"""What a site says of itself, checked before it enters a report: a site may be wrong, and must not spoil it for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MODES = ("standard", "fedfms")
METRICS = ("dice", "iou")


def clean_number(value: Any) -> float | int | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def clean_scores(raw: Any, structures: Sequence[str]) -> dict[str, Any] | None:
    """The known keys of a `Scores.result()` of these structures; None if `raw` is not one."""
    try:
        out = {mode: {name: _row(raw[mode][name], mode) for name in structures} for mode in MODES}
        images = _count(raw["images"])
    except (KeyError, TypeError, ValueError):
        return None
    return out | {"images": images, "dice": mean(row["dice"] for row in out["standard"].values())}


def mean(values: Iterable[float | None]) -> float | None:
    """Plain mean of the values that are known; None when none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _row(raw: Mapping[str, Any], mode: str) -> dict[str, Any]:
    row: dict[str, Any] = {metric: _share(raw[metric]) for metric in METRICS} | {"images": _count(raw["images"])}
    return row | {"empty": _count(raw["empty"])} if mode == "standard" else row


def _share(value: Any) -> float | None:
    if value is None:
        return None
    number = clean_number(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError("not a number in 0..1")
    return number


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("not a count")
    return value
