"""A small converted site, as a converter would write it."""

from pathlib import Path

import numpy as np
from PIL import Image

from fedfms.data.manifest import (
    VERSION,
    Case,
    LabelClass,
    Manifest,
    Slice,
    make_splits,
    pixel_sha256,
    save_manifest,
)
from fedfms.data.native import is_inside, native_probabilities
from fedfms.study import Study

STRUCTURES = [{"name": "disc", "values": [1, 2]}, {"name": "cup", "values": [2]}]


def native_masks(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks or probabilities (C, h, w) as bool masks (C, H, W) of native `size`."""
    return is_inside(native_probabilities(probabilities, size))


def make_study(**data: object) -> Study:
    """A study of the data set "eyes"."""
    held_out = data.pop("held_out", [])
    raw = {
        "name": "eyes",
        "held_out": held_out,
        "data": {"dataset": "eyes", "structures": STRUCTURES, **data},
    }
    return Study.from_dict(raw)


def make_site(root: Path, site: str = "a", *, n: int = 20, grey: bool = False, salt: str = "") -> Manifest:
    """`n` images of 12 x 20 px (height x width), one per patient, with an off-centre disc and cup."""
    folder = root / "eyes" / site
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    cases = []
    for number in range(n):
        image = random.integers(0, 256, (12, 20) if grey else (12, 20, 3), dtype=np.uint8)
        label = np.zeros((12, 20), dtype=np.uint8)
        label[1:5, 2:12] = 1
        label[2:4, 4:9] = 2
        id_ = f"{salt}case{number:02d}"
        names = f"images/{id_}_0.png", f"labels/{id_}_0.png"
        for name, pixels in zip(names, (image, label), strict=True):
            Image.fromarray(pixels).save(folder / name)
        cases.append(
            Case(
                id_,
                f"{salt}p{number:02d}",
                (Slice(*names, 20, 12, 1 if grey else 3, pixel_sha256(image), pixel_sha256(label), (0, 1, 2)),),
            )
        )
    listed = tuple(reversed(cases)) if salt else tuple(cases)
    structures = LabelClass("rim", 1), LabelClass("cup", 2)
    manifest = Manifest(VERSION, "eyes", site, structures, listed, make_splits(listed))
    save_manifest(manifest, folder)
    return manifest
