"""Sources of slices: a site's folder, or arrays in memory. Both give native uint8 pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedfms.data.manifest import FORMATS, Manifest, pixel_sha256
from fedfms.errors import DataError
from fedfms.study import Structure

Pixels = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # image (H, W) or (H, W, 3); label values (H, W)
# Pillow reports damage to a PNG's chunks as SyntaxError
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
CHECK = "run `fedfms prepare check` on the data root, then convert the site again"


@dataclass(frozen=True)
class Item:
    """One slice of a case; `case` and `patient` are pseudonyms."""

    case: str
    slice: int  # its number in the case
    patient: str
    key: str  # SHA-256 of the image's pixels
    width_px: int
    height_px: int
    channels: int
    values: tuple[int, ...]  # label values present
    label_sha256: str = ""
    image: str = ""  # file name relative to the site's folder; empty for arrays in memory
    label: str = ""

    def has(self, structure: Structure) -> bool:
        """Whether the structure's mask is not empty at native resolution."""
        return bool(set(self.values) & set(structure.values))


def list_items(manifest: Manifest) -> list[Item]:
    """Every slice of a converted site, in the manifest's order."""
    return [
        Item(
            case.id, number, case.patient, s.image_sha256, s.width_px, s.height_px, s.channels, s.values,
            s.label_sha256, s.image, s.label,
        )
        for case, number, s in manifest.slices()
    ]  # fmt: skip


class Source(Protocol):
    """Reads the pixels of an item, or checks that it can."""

    def read(self, item: Item) -> Pixels: ...

    def check(self, item: Item) -> None: ...


class MemorySource:
    """Pixels in memory, by (case, slice)."""

    def __init__(self, pixels: dict[tuple[str, int], Pixels]) -> None:
        self._pixels = pixels

    def read(self, item: Item) -> Pixels:
        """Image and label values of the item."""
        return self._pixels[item.case, item.slice]

    def check(self, item: Item) -> None:
        """Arrays in memory cannot be damaged."""


class FolderSource:
    """Pixels in a site's folder, compared with the manifest when first read; with `cache`, kept in memory."""

    def __init__(self, folder: Path, site: str, *, cache: bool) -> None:
        self._folder = folder
        self._site = site
        self._cache: dict[tuple[str, int], Pixels] | None = {} if cache else None
        self._verified: set[tuple[str, int]] = set()

    def read(self, item: Item) -> Pixels:
        """Image and label values of the item.

        Raises:
            DataError: a file is missing or damaged, or its pixels are not those of the manifest.
        """
        place = item.case, item.slice
        if self._cache is not None and place in self._cache:
            return self._cache[place]
        pixels = self._decode(item.image, item, "image"), self._decode(item.label, item, "label")
        if place not in self._verified:
            self._verify(pixels, item)
            self._verified.add(place)
        if self._cache is not None:
            self._cache[place] = pixels
        return pixels

    def read_label(self, item: Item) -> NDArray[np.uint8]:
        """Label values (H, W) of the item, without decoding its image.

        Raises:
            DataError: the file is missing or damaged, or its pixels are not those of the manifest.
        """
        label = self._decode(item.label, item, "label")
        if pixel_sha256(label) != item.label_sha256:
            raise self._fault(f"the label of slice {item.slice} has changed since the conversion", item)
        return label

    def check(self, item: Item) -> None:
        """Read the item once and check that its files match the manifest.

        Raises:
            DataError: they do not.
        """
        self.check_size(item)
        self.read(item)

    def check_size(self, item: Item) -> None:
        """Check that both files can be opened and have the item's size, without decoding them.

        Raises:
            DataError: they do not.
        """
        for kind, name, modes in (
            ("image", item.image, ("L",) if item.channels == 1 else ("RGB",)),
            ("label", item.label, ("L",)),
        ):
            try:
                with Image.open(self._folder / name, formats=FORMATS) as opened:
                    size, mode = opened.size, opened.mode
            except _DAMAGE as error:
                what = f"the {kind} of slice {item.slice} is missing, or neither PNG nor WebP"
                raise self._fault(what, item) from error
            if size != (item.width_px, item.height_px) or mode not in modes:
                expected = f"{item.width_px} x {item.height_px} px {modes[0]}"
                what = f"is {size[0]} x {size[1]} px {mode}, the manifest has {expected}"
                raise self._fault(f"the {kind} of slice {item.slice} {what}", item)

    def _decode(self, name: str, item: Item, kind: str) -> NDArray[np.uint8]:
        try:
            with Image.open(self._folder / name, formats=FORMATS) as opened:
                return np.array(opened)  # a copy: torch needs it writable
        except _DAMAGE as error:
            raise self._fault(f"the {kind} of slice {item.slice} is missing or damaged", item) from error

    def _verify(self, pixels: Pixels, item: Item) -> None:
        image, label = pixels
        if image.shape[:2] != label.shape[:2] or label.ndim != 2:
            raise self._fault(f"image and label of slice {item.slice} differ in size", item)
        if unknown := sorted(set(np.unique(label).tolist()) - set(item.values)):
            raise self._fault(f"slice {item.slice} has label values {unknown} that the manifest does not list", item)
        if pixel_sha256(image) != item.key or pixel_sha256(label) != item.label_sha256:
            raise self._fault(f"the pixels of slice {item.slice} have changed since the conversion", item)

    def _fault(self, what: str, item: Item) -> DataError:
        return DataError(what, where=f"site {self._site}, case {item.case}", do=CHECK)
