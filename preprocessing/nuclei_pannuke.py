"""PanNuke's folds: arrays of patches whose tissue is their site. Arrays are memory-mapped: a fold takes 10 GB."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfms.errors import DataError
from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.raw import reject_outside, split_by_access, walk
from fedfms.preprocessing.recipe import Decoded, Found, Pixels, RawCase

_KINDS = 5  # channels of masks.npy with nuclei; the sixth is the background
_PICKLED = (
    "on a machine where you trust the file, write it as text: "
    "python -c \"import numpy as n; n.save('types.npy', n.load('types.npy', allow_pickle=True).astype(str))\""
)


@dataclass(frozen=True)
class Fold:
    """The three arrays of a fold."""

    name: str
    images: Path
    masks: Path
    types: Path


def find_folds(raw: Path) -> list[Fold]:
    """Folds below `raw`, at any depth.

    A fold is `images/fold1/{images,types}.npy` with `masks/fold1/masks.npy`, as published, or has all files in one
    folder.

    Raises:
        DataError: a file is missing, or two folds have one name.
        Fault: a file lies outside `raw`.
    """
    folds: list[Fold] = []
    for types in _types(raw):
        place = types.parent
        published = place.parent.parent / "masks" / place.name
        masks = next((m for m in (place / "masks.npy", published / "masks.npy") if m.is_file()), None)
        if masks is None or not (place / "images.npy").is_file():
            what = "a fold of PanNuke lacks images.npy or masks.npy"
            raise DataError(what, do="see the layout in `fedfms prepare nuclei --help`")
        folds.append(Fold(place.name.lower(), place / "images.npy", masks, types))
    # before any case is read, because the search for cases opens the arrays
    reject_outside(raw.resolve(), [path for fold in folds for path in (fold.images, fold.masks, fold.types)])
    if len({fold.name for fold in folds}) < len(folds):
        raise DataError("two folds of PanNuke have one name", do="leave one copy of each fold in --raw")
    return folds


def find_patches(folds: list[Fold], tissue: str) -> Found:
    """The patches of a tissue, one case each. No file identifies patients, so each is a separate patient.

    Raises:
        DataError: types.npy is pickled, or the lengths of the arrays differ.
    """
    cases = {}
    for fold in folds:
        tissues = read_tissues(fold)
        count = len(_memory_map(fold.images))
        if not len(tissues) == count == len(_memory_map(fold.masks)):
            raise DataError("the arrays of a fold of PanNuke have different lengths", do="copy the fold again")
        for number in np.flatnonzero([letters(name) == letters(tissue) for name in tissues]).tolist():
            name = f"{fold.name}/{number:05d}"
            cases[name] = RawCase(name, name, {"image": fold.images, "label": fold.masks}, part=number)
    return Found(cases)


def read_tissues(fold: Fold) -> list[str]:
    """The tissue of each patch of a fold.

    Raises:
        DataError: the array is pickled, which could run code when read, or it is not an array of texts.
    """
    try:
        found = np.load(fold.types, allow_pickle=False)
    except ValueError as error:
        raise DataError("types.npy of PanNuke is pickled or damaged, so it is not read", do=_PICKLED) from error
    if found.dtype.kind != "U" or found.ndim != 1:
        raise DataError("types.npy of PanNuke is not a list of texts", do=_PICKLED)
    return [str(name) for name in found]


def read_patch(case: RawCase) -> Decoded:
    """One patch: its image (256, 256, 3), and label value 1 for any of its nuclei. Errors as in `Recipe.read`."""
    try:
        image = np.array(_memory_map(case.files["image"])[case.part])
        masks = np.array(_memory_map(case.files["label"])[case.part])
    except (DataError, IndexError, OSError, ValueError) as error:
        raise Fault("the patch cannot be read: its array is damaged or cut short") from error
    if image.ndim != 3 or image.shape[2] != 3 or masks.shape != (*image.shape[:2], _KINDS + 1):
        raise Fault("the patch is not H x W x 3 with a mask H x W x 6")
    marked = np.asarray((masks[..., :_KINDS] > 0).any(axis=2))
    # nuclei in the background's channel: the channels are in another order
    if marked.any() and (masks[..., _KINDS] > 0)[marked].mean() > 0.5:
        raise Fault("most nuclei of the patch are also background, so its channels are not PanNuke's")
    return Decoded(((_as_uint8(image), marked.astype(np.uint8)),))


def letters(tissue: str) -> str:
    """A tissue's name for comparison: lower-case letters only ("Adrenal_gland" equals "Adrenal Gland")."""
    return re.sub(r"[^a-z]", "", tissue.lower())


def _types(raw: Path) -> list[Path]:
    """Every types.npy in a readable folder of `raw`."""
    found = []
    for folder in split_by_access(raw)[0]:
        try:
            found += [path for path in walk(folder) if path.name == "types.npy"]
        except OSError:
            continue  # listed and reported as a site that cannot be read
    return sorted(found)


def _memory_map(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError("an array of PanNuke cannot be read: damaged or cut short", do="copy it again") from error
    return array


def _as_uint8(image: NDArray[Any]) -> Pixels:
    """Unchanged pixels as uint8: PanNuke stores whole numbers in 0..255 as float64."""
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise Fault("the patch has values outside 0..255")
    if (values != np.rint(values)).any() or values.max() <= 1:
        raise Fault("the patch has values that are not whole numbers in 0..255")
    return values.astype(np.uint8)
