"""Validation of a site's scores and numbers before they enter a report: an invalid value must not spoil the report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedfms.errors import DataError
from fedfms.schema import parse
from fedfms.training.disclosure import MIN_CASES
from fedfms.training.metrics import MODES, VOLUME

ALL_MODES = (*MODES, VOLUME)  # volume only where a case has several slices
OPEN = ConfigDict(strict=True, extra="ignore")  # of records: another version may add keys
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=OPEN)
class ScoreRow:
    """Mean and sample s.d. over a site's images (over cases for volume). None: suppressed, or nothing was counted."""

    dice: Share | None
    iou: Share | None
    dice_sd: Share | None = None
    iou_sd: Share | None = None
    images: Count | None
    empty: Count | None = None

    def to_dict(self, mode: str) -> dict[str, Any]:
        """The row as `Scores.result()` has it in this mode.

        Raises:
            ValueError: it is partly suppressed.
        """
        row = {key: value for key, value in asdict(self).items() if key != "empty" or mode != "fedfms"}
        if None in (row["images"], row.get("empty", 0)) and any(value is not None for value in row.values()):
            raise ValueError("partly suppressed")
        return row


@dataclass(frozen=True, config=OPEN)
class SiteScores:
    """What `suppress_small_cells` returns: for each mode a row per structure, and the number of all scored images."""

    standard: Mapping[str, ScoreRow]
    fedfms: Mapping[str, ScoreRow]
    images: Count
    volume: Mapping[str, ScoreRow] | None = None
    min_cases: Count = 0

    def by_mode(self) -> dict[str, Mapping[str, ScoreRow]]:
        """Rows by structure, for each mode that has any."""
        return {mode: rows for mode in ALL_MODES if (rows := getattr(self, mode)) is not None}


def clean_number(value: Any) -> float | int | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def clean_scores(raw: Any, structures: Sequence[str]) -> dict[str, Any] | None:
    """The known keys of a site's scores of these structures; None if `raw` is not valid (see `SiteScores`)."""
    try:
        scores = parse(SiteScores, raw, DataError)
        modes = scores.by_mode().items()
        rows = {mode: {name: of_mode[name].to_dict(mode) for name in structures} for mode, of_mode in modes}
    except (DataError, KeyError, ValueError):
        return None
    dice = mean(row["dice"] for row in rows["standard"].values())
    return {**rows, "images": scores.images, MIN_CASES: scores.min_cases, "dice": dice}


def modes_of(scores: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The modes of the scores; volume only if any of them has it."""
    return ALL_MODES if any(VOLUME in score for score in scores) else MODES


def mean(values: Iterable[float | None]) -> float | None:
    """Plain mean of the known values; None if no value is known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
