"""Masks in image files -> label values; how images and their faults are read is `fedfms.data.imagefile`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfms.data.imagefile import COLOUR, ENDINGS, GREY, LOSSY, Fault, as_fault, open_image, read_image

__all__ = ["ENDINGS", "Fault", "LabelRule", "as_fault", "read_image", "read_label"]


@dataclass(frozen=True)
class LabelRule:
    """How stored mask values become label values.

    Either a threshold on the luminance (above it: label value 1), or a table of stored values; with
    `palette_index` the table is of a palette's indices, otherwise of luminance (RGB and palette masks are
    converted to it first).
    """

    threshold: int | None = 127
    values: Mapping[int, int] = field(default_factory=dict)
    palette_index: bool = False


def read_label(path: Path, rule: LabelRule) -> NDArray[np.uint8]:
    """Label values (H, W), uint8, of a mask under a rule.

    Raises:
        Fault: as `read_image`; or a stored value that the rule does not foresee.
    """
    with as_fault("mask"):
        opened, kind = open_image(path, "mask")
        if opened.mode not in GREY + COLOUR:
            raise Fault(f"the mask has mode {opened.mode}, not 8 bits")
        if rule.palette_index and opened.mode == "P":
            stored = np.asarray(opened)
        else:
            flat = opened.convert("RGB") if opened.mode in ("P", "RGBA") else opened  # alpha plays no part
            stored = np.asarray(flat.convert("L"))
    if rule.threshold is not None:
        top = int(stored.max())
        # A lossless mask of 0 and 1 would come out empty under a threshold of 127, and nobody would notice.
        if 0 < top <= rule.threshold and kind not in LOSSY:
            what = f"the mask's largest value is {top}, none is above the threshold {rule.threshold}"
            raise Fault(f"{what}; a colour counts by its luminance")
        return (stored > rule.threshold).astype(np.uint8)
    odd = sorted(set(np.unique(stored).tolist()) - set(rule.values))
    if odd:
        raise Fault(f"the mask has values {odd[:8]} that the label rule does not name")
    table = np.zeros(256, dtype=np.uint8)
    for source, value in rule.values.items():
        table[source] = value
    label: NDArray[np.uint8] = table[stored]
    return label
