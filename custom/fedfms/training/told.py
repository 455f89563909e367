"""What a site tells of its scores: nothing of fewer than `min_cases` images.

A mean over one image is that image's own, and one over two is known to whoever knows the other. The unit is the image
(by volume: the case), as the scores' own is. A study of persons would be stricter, and count patients: a site whose
images are many slices of few persons sets its own `min_cases` accordingly.

Every score that leaves a site goes through here; the site itself looks at its scores as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MIN_CASES = "min_cases"  # key of the rule that told scores went through


def withhold(scores: Mapping[str, Any], min_cases: int) -> dict[str, Any]:
    """`Scores.result()` with every row None, its counts with it, that is of fewer than `min_cases` images.

    Where a structure is in too few images, it is withheld in all modes: `fedfms` counts 1 for what is empty, and so
    would tell of the same few. The number of all images scored stays (a site tells how many it has anyway), and the
    rule is told with it; "dice" is the mean over the structures that are left, None where none is.
    """
    few = {name for name, row in scores["standard"].items() if _few(row, min_cases)}
    told: dict[str, Any] = {
        key: {name: dict.fromkeys(row) if name in few or _few(row, min_cases) else dict(row)
              for name, row in value.items()}
        if isinstance(value, Mapping) else value
        for key, value in scores.items()
    }  # fmt: skip
    known = [row["dice"] for row in told["standard"].values() if row["dice"] is not None]
    return told | {"dice": sum(known) / len(known) if known else None, MIN_CASES: min_cases}


def withheld(row: Mapping[str, Any]) -> bool:
    """Whether a site keeps a row of its scores to itself."""
    return row["images"] is None


def withheld_text(scores: Mapping[str, Any], of: str = "images") -> str:
    """What a person reads in place of a number that is withheld."""
    return f"withheld (fewer than {scores[MIN_CASES]} {of})"


def _few(row: Mapping[str, Any], min_cases: int) -> bool:
    return withheld(row) or row["images"] < min_cases
