"""What a site tells of its scores: nothing of fewer than `min_cases` images.

A mean over one image is that image's own, and one over two is known to whoever knows the other. The unit is the image
(by volume: the case), as the scores' own is. A study of persons would be stricter, and count patients: a site whose
images are many slices of few persons sets its own `min_cases` accordingly.

Every score that leaves a site goes through here; the site itself looks at its scores as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedfms.training.metrics import VOLUME, mean_over_structures

PRESENT = "shown"  # how many images and cases have a structure: for this rule alone, and never told
MIN_CASES = "min_cases"  # key of the rule that told scores went through


def suppress_small_cells(scores: Mapping[str, Any], min_cases: int) -> dict[str, Any]:
    """`Scores.result()` with every row None, its counts with it, that is of fewer than `min_cases` images.

    Images that do not show the structure are no cover: a false alarm in one of them counts 0, and so the mean of
    seven such and one that shows it is an eighth of that one's own score. So the structure must be in the truth of
    `min_cases` images (by volume: cases) too. Where it is in too few images, it is suppressed in all modes: `fedfms`
    counts 1 for what is empty, and so would tell of the same few. The number of all images scored stays (a site
    tells how many it has anyway), and the rule is told with it; "dice" is the mean over the structures that are left,
    None where none is.
    """
    shown = scores.get(PRESENT, {"image": {}, "case": {}})  # no longer there where it was looked at before
    few = {name for name, row in scores["standard"].items() if _few(row, min_cases)}
    few |= {name for name, count in shown["image"].items() if count < min_cases}
    of_few_cases = few | {name for name, count in shown["case"].items() if count < min_cases}
    told: dict[str, Any] = {}
    for key, value in scores.items():
        if isinstance(value, Mapping) and key != PRESENT:
            kept = of_few_cases if key == VOLUME else few
            told[key] = {
                name: dict.fromkeys(row) if name in kept or _few(row, min_cases) else dict(row)
                for name, row in value.items()
            }
        elif key != PRESENT:
            told[key] = value
    return told | {"dice": mean_over_structures(told["standard"], "dice"), MIN_CASES: min_cases}


def suppressed(row: Mapping[str, Any]) -> bool:
    """Whether a site keeps a row of its scores to itself."""
    return row["images"] is None


def suppressed_text(scores: Mapping[str, Any], of: str = "images") -> str:
    """What a person reads in place of a number that is suppressed."""
    return f"suppressed (fewer than {scores[MIN_CASES]} {of})"


def _few(row: Mapping[str, Any], min_cases: int) -> bool:
    return suppressed(row) or row["images"] < min_cases
