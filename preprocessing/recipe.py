"""What a data set says of itself, so that one engine converts them all: its structures and its three
rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedfms.data.manifest import LabelClass


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


def own_patient(site: str, stem: str) -> str:
    """The patient rule where nothing is known: each image is its own patient."""
    return stem


@dataclass(frozen=True)
class Recipe:
    """A data set: structures, label rule, names of masks, and who is the same patient.

    A raw site folder holds `images/` and `labels/`; the mask of `images/a.jpg` is `labels/a` + one of
    `mask_suffixes` + any ending. `patient` maps a site and an image's stem to a name that images of one
    patient share; None, where its rule does not say, is a fault of the image.
    """

    dataset: str
    structures: tuple[LabelClass, ...]
    labels: LabelRule = LabelRule()
    mask_suffixes: tuple[str, ...] = ("", "_mask")
    patient: Callable[[str, str], str | None] = own_patient
