"""A small raw folder in the published layout of every registered data set, for tests over the registry.

For a new data set, add a function that makes its layout with at least two cases at the damaged site, and an entry in
`LAYOUTS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedfms.preprocessing import hippocampus
from tests.preprocessing.fundus_layouts import g1020, refuge
from tests.preprocessing.make import CANARY, make_raw
from tests.preprocessing.nuclei_layouts import monuseg, tnbc
from tests.preprocessing.test_brain import name_of, subject, table
from tests.preprocessing.test_prostate import collection
from tests.preprocessing.volume_layouts import pair, scan, truth

FLAT, VOLUME = "flat", "volume"


@dataclass(frozen=True)
class Layout:
    """A raw folder that `make` fills, and the case in it that a test damages."""

    kind: str
    make: Callable[[Path], None]
    site: str  # of the damaged case
    image: str  # of the damaged case, relative to the raw folder
    label: str
    odd: np.ndarray  # a label array of the image's size that the data set's label rule rejects
    message: str  # the fault of `odd`


def layout_of(name: str) -> Layout:
    """The layout of a registered data set. Call it in tests and fixtures only, not while tests are collected."""
    if name not in LAYOUTS:
        pytest.fail(
            f"the data set {name!r} is registered but has no test layout; "
            f"add a Layout {name!r} to LAYOUTS in tests/preprocessing/layouts.py"
        )
    return LAYOUTS[name]


def of_kind(kind: str) -> str:
    """The first data set of a kind with a layout."""
    return next(name for name, layout in LAYOUTS.items() if layout.kind == kind)


def _polyp(raw: Path) -> None:
    for site in ("a", "b"):
        make_raw(raw / site, n=4)


def _fundus(raw: Path) -> None:
    g1020(raw / "G1020")
    refuge(raw / "REFUGE")


def _nuclei(raw: Path) -> None:
    tnbc(raw / "TNBC")
    monuseg(raw / "MoNuSeg2018")


def _prostate(raw: Path) -> None:
    collection(raw, ("HK", "ISBI"))


def _hippocampus(raw: Path) -> None:
    label = truth((7, 9, 11))
    label[0, 1, 2] = 2
    for number, site in enumerate((*hippocampus.SITES, hippocampus.SITES[0])):
        voxels = scan((7, 9, 11), np.uint8, 253, seed=number)
        pair(raw / site, f"hippocampus_{number:03}", voxels, label, affine=np.eye(4))


def _brain(raw: Path) -> None:
    rows = {"1": [name_of(0), name_of(1)], "6": [name_of(3)]}
    table(raw, rows)
    for name in (*rows["1"], *rows["6"]):
        subject(raw, name)


_RED = np.zeros((20, 26, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
LAYOUTS = {
    "brain": Layout(
        VOLUME, _brain, "1", "FeTS2022_00001/FeTS2022_00001_t1ce.nii.gz", "FeTS2022_00001/FeTS2022_00001_seg.nii.gz",
        truth((14, 16, 23), (1, 2, 3)), "the segmentation has values [3] that the label rule does not name",
    ),
    "fundus": Layout(
        FLAT, _fundus, "G1020", "G1020/Images/image_1.jpg", "G1020/Masks/image_1.png",
        np.full((24, 30), 7, np.uint8), "the mask has values [7]; known are 0/1/2 and 255/128/0",
    ),
    "hippocampus": Layout(
        VOLUME, _hippocampus, "msd_uint8", "msd_uint8/images/hippocampus_003.nii.gz",
        "msd_uint8/labels/hippocampus_003.nii.gz", truth((7, 9, 11)) * 3,
        "the segmentation has values [3] that the label rule does not name",
    ),
    "nuclei": Layout(
        FLAT, _nuclei, "TNBC", "TNBC/TNBC/Slide_01/01_2.png", "TNBC/TNBC/GT_01/01_2.png",
        _RED, "the mask is coloured, so its values are unknown",
    ),
    "polyp": Layout(
        FLAT, _polyp, "b", f"b/images/{CANARY}2.png", f"b/labels/{CANARY}2_mask.png",
        np.ones((10, 14), np.uint8), "the mask's largest value is 1, none is above the threshold 127",
    ),
    "prostate": Layout(
        VOLUME, _prostate, "HK", "HK/Case01.nii.gz", "HK/Case01_segmentation.nii.gz",
        truth().astype(np.int16) * 300, "the segmentation has values from 0 to 300, not within 0..255",
    ),
}  # fmt: skip
