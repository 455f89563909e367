"""What a site says of itself, checked before it enters a report: a site may be wrong, and must not spoil it for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedfms.training.disclosure import MIN_CASES, suppressed
from fedfms.training.metrics import METRICS, MODES, VOLUME

_SDS = tuple(f"{metric}_sd" for metric in METRICS)


def clean_number(value: Any) -> float | int | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def clean_scores(raw: Any, structures: Sequence[str]) -> dict[str, Any] | None:
    """The known keys of what `suppress_small_cells` makes of a `Scores.result()` of these structures; None if `raw` is not that."""
    try:
        modes = (*MODES, VOLUME) if VOLUME in raw else MODES
        out = {mode: {name: _row(raw[mode][name], mode) for name in structures} for mode in modes}
        counts = {"images": _count(raw["images"]), MIN_CASES: _count(raw.get(MIN_CASES, 0))}
    except (KeyError, TypeError, ValueError):
        return None
    return out | counts | {"dice": mean(row["dice"] for row in out["standard"].values())}


def modes_of(scores: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The modes in which any of the scores are: by volume they may be or not."""
    return (*MODES, VOLUME) if any(VOLUME in score for score in scores) else MODES


def mean(values: Iterable[float | None]) -> float | None:
    """Plain mean of the values that are known; None when none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _row(raw: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """A row with all of its numbers, or (suppressed) with none; runs of earlier versions have no s.d."""
    counts = ("images",) if mode == "fedfms" else ("images", "empty")
    row: dict[str, Any] = {metric: raw[metric] for metric in METRICS} | {sd: raw.get(sd) for sd in _SDS}
    row |= {key: raw[key] for key in counts}
    if not suppressed(row):
        return {key: _count(value) if key in counts else _share(value) for key, value in row.items()}
    if any(value is not None for value in row.values()):
        raise ValueError("suppressed in part")
    return row


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
