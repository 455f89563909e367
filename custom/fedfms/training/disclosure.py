"""Small-cell suppression: no score over fewer than `min_cases` images leaves a site.

A mean over one image is that image's score; a mean over two reveals one to anyone who knows the other. The unit is the
image (the case for `volume`), not the patient: a site with many slices of few patients sets a larger `min_cases`.

Every score that leaves a site passes through here. Scores that stay at the site are not suppressed.
"""

from collections.abc import Mapping
from typing import Any

from fedfms.training.metrics import PRESENT, VOLUME, mean_over_structures

MIN_CASES = "min_cases"  # key of the threshold that was applied


def suppress_small_cells(scores: Mapping[str, Any], min_cases: int) -> dict[str, Any]:
    """`Scores.result()` in which all values of a row are None if the row is over fewer than `min_cases` images.

    The structure must also be present in the truth of `min_cases` images (cases for `volume`). An image without the
    structure may count as a known 0 (a false positive): the mean over seven of them and one image with the structure
    then reveals that one's score. A structure in too few images is suppressed in all modes: the mode `fedfms` counts
    empty images as a known 1, so its mean would reveal the same.

    The number of all scored images is not suppressed, since a site reports it anyway. "dice" becomes the mean over the
    remaining structures, None if none remains. The result holds `min_cases` and no longer the counts of "present".
    Applying the function again changes nothing.
    """
    present = scores.get(PRESENT, {"image": {}, "case": {}})  # missing if already suppressed
    few = {name for name, row in scores["standard"].items() if _is_small(row, min_cases)}
    few |= {name for name, count in present["image"].items() if count < min_cases}
    few_cases = few | {name for name, count in present["case"].items() if count < min_cases}
    result = {key: value for key, value in scores.items() if key != PRESENT}
    for mode, rows in result.items():
        if isinstance(rows, Mapping):
            small = few_cases if mode == VOLUME else few
            result[mode] = {
                name: dict.fromkeys(row) if name in small or _is_small(row, min_cases) else dict(row)
                for name, row in rows.items()
            }
    return result | {"dice": mean_over_structures(result["standard"], "dice"), MIN_CASES: min_cases}


def suppressed(row: Mapping[str, Any]) -> bool:
    """Whether a row of scores is suppressed."""
    return row["images"] is None


def suppressed_text(scores: Mapping[str, Any], of: str = "images") -> str:
    """What reports show in place of a suppressed number."""
    return f"suppressed (fewer than {scores[MIN_CASES]} {of})"


def _is_small(row: Mapping[str, Any], min_cases: int) -> bool:
    return suppressed(row) or row["images"] < min_cases
