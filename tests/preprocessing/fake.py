"""A fake data set of text files: the text of a file selects what its reader returns or raises."""

import logging
import warnings
from pathlib import Path

import numpy as np

from fedfms.data.manifest import LabelClass, Volume
from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.recipe import Decoded, Found, RawCase, Recipe

SHAPE, AXIS, POSITIONS = (6, 9, 4), 2, (0, 2, 3)
AFFINE = (0.5, 0, 0, -7, 0, 0.5, 0, 1, 0, 0, 3, 2, 0, 0, 0, 1)


def array(name: str) -> np.ndarray:
    """The volume of a case, uint8 (6, 9, 4)."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, SHAPE, dtype=np.uint8)


def sites(raw: Path) -> list[str]:
    return ["s"]


def find(raw: Path, site: str) -> Found:
    paths = sorted(raw.glob("*.txt"))
    return Found({p.stem: RawCase(p.stem, p.stem.split("-")[0], {"volume": p}, part=1) for p in paths})


def read(case: RawCase) -> Decoded:
    path = case.files["volume"]
    kind = path.read_text()
    logging.getLogger("library").error("cannot read %s", path)
    warnings.warn(f"header of {path}", stacklevel=1)
    if kind == "fault":
        raise Fault("the volume is\n4D")
    if kind == "crash":
        raise ValueError(f"cannot parse {path}")
    if kind == "memory":
        raise MemoryError(str(path))
    voxels = array(case.name)
    pairs = [(np.take(voxels, k, AXIS), (np.take(voxels, k, AXIS) > 99).astype(np.uint8)) for k in POSITIONS]
    image, label = pairs[1]
    broken = {
        "value": (image, label * 9),
        "label type": (image, label.astype(np.int64)),
        "image type": (image.astype(np.float32), label),
        "channels": (np.stack([image] * 2, axis=-1), label),
        "size": (image, label[1:]),
        "all sizes": (image[1:], label[1:]),
    }
    pairs[1] = broken.get(kind, pairs[1])
    affine = (float("nan"), *AFFINE[1:]) if kind == "affine" else tuple(np.float32(a) for a in AFFINE)
    positions = tuple(np.int64(k) for k in (POSITIONS[:2] if kind == "positions" else POSITIONS))
    return Decoded(() if kind == "none" else tuple(pairs), Volume(SHAPE, affine, np.int64(AXIS), positions))


RECIPE = Recipe("fake", (LabelClass("thing", 1),), sites, find, read, options={"depth": "third axis"})
