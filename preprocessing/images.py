"""Raw files -> uint8 pixels, with every defect of a file as one `Fault` that names neither file nor folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.opening import ENDINGS, LOSSY, Fault, open_image

__all__ = ["ENDINGS", "Fault", "LabelRule", "as_fault", "read_image", "read_label"]

_GREY, _COLOUR = ("1", "L", "LA"), ("P", "RGB", "RGBA", "CMYK", "YCbCr")


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


def read_image(path: Path) -> NDArray[np.uint8]:
    """Pixels (H, W) of a grey image or (H, W, 3) of a colour one, EXIF orientation applied, alpha left out.

    Raises:
        Fault: damaged, too large, of several pages, or not of 8 bits.
    """
    with as_fault("image"):
        opened, _ = open_image(path, "image")
        if opened.mode in _GREY:
            return np.asarray(opened.convert("L"))
        if opened.mode in _COLOUR:
            return np.asarray(opened.convert("RGB"))
        raise Fault(f"the image has mode {opened.mode}, not 8 bits; window it to 8 bits first")


def read_label(path: Path, rule: LabelRule) -> NDArray[np.uint8]:
    """Label values (H, W), uint8, of a mask under a rule.

    Raises:
        Fault: as `read_image`; or a stored value that the rule does not foresee.
    """
    with as_fault("mask"):
        opened, kind = open_image(path, "mask")
        if opened.mode not in _GREY + _COLOUR:
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


@contextmanager
def as_fault(what: str) -> Iterator[None]:
    """Whatever goes wrong in reading one file (`what`: "image", "mask") is a `Fault` of this file.

    The texts of the libraries' and the system's own errors may hold the path, so none is passed on.
    """
    try:
        yield
    except Fault:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Fault(f"the {what} has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except FileNotFoundError as error:
        raise Fault(f"the {what} is missing") from error
    except PermissionError as error:
        raise Fault(f"the {what} cannot be read: this user has no right to") from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside a library
        raise Fault(f"the {what} cannot be read: damaged, cut short, or of an unknown kind") from error
