"""Masks in image files -> label values. `fedfms.data.imagefile` reads the images and defines `Fault`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfms.data.imagefile import COLOUR, ENDINGS, GREY, LOSSY, Fault, as_fault, open_image, read_image

__all__ = ["ENDINGS", "Fault", "LabelRule", "as_fault", "check_size", "read_image", "read_label"]


@dataclass(frozen=True)
class LabelRule:
    """How stored mask values become label values: by a threshold, or by a table if `threshold` is None.

    RGB and palette masks are converted to luminance first, unless `palette_index` is set.
    """

    threshold: int | None = 127  # luminance above it is label value 1
    values: Mapping[int, int] = field(default_factory=dict)  # label value by stored value
    palette_index: bool = False  # the stored values of a palette mask are its indices


def read_label(path: Path, rule: LabelRule) -> NDArray[np.uint8]:
    """Label values (H, W), uint8, of a mask under a rule.

    Raises:
        Fault: as `read_image`, or the rule does not cover a stored value.
    """
    with as_fault("mask"):
        opened, kind = open_image(path, "mask")
        if opened.mode not in GREY + COLOUR:
            raise Fault(f"the mask has mode {opened.mode}, not 8 bits")
        if rule.palette_index and opened.mode == "P":
            stored = np.asarray(opened)
        else:
            flat = opened.convert("RGB") if opened.mode in ("P", "RGBA") else opened  # alpha is ignored
            stored = np.asarray(flat.convert("L"))
    if rule.threshold is not None:
        top = int(stored.max())
        # a lossless mask of 0 and 1 would become empty under a threshold of 127 without an error
        if 0 < top <= rule.threshold and kind not in LOSSY:
            what = f"the mask's largest value is {top}, none is above the threshold {rule.threshold}"
            raise Fault(f"{what}; a colour counts by its luminance")
        return (stored > rule.threshold).astype(np.uint8)
    unknown = sorted(set(np.unique(stored).tolist()) - set(rule.values))
    if unknown:
        raise Fault(f"the mask has values {unknown[:8]} that the label rule does not name")
    table = np.zeros(256, dtype=np.uint8)
    table[list(rule.values)] = list(rule.values.values())
    label: NDArray[np.uint8] = table[stored]
    return label


def check_size(image: NDArray[np.generic], label: NDArray[np.generic]) -> None:
    """Check that an image (H, W) or (H, W, 3) and its mask (H, W) have one size.

    Raises:
        Fault: the sizes differ.
    """
    if image.shape[:2] != label.shape:
        sizes = [f"{pixels.shape[1]} x {pixels.shape[0]} px" for pixels in (image, label)]
        raise Fault(f"image {sizes[0]} and mask {sizes[1]} differ")
