"""NIfTI volumes and their segmentations -> 8-bit slices: find, read, check and cut pairs of files.

Slices keep the array's orientation, order and size.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfms.data.intensity import Mask, eight_bits
from fedfms.data.manifest import LabelClass
from fedfms.data.niftifile import Array, read_nifti, stem_of
from fedfms.data.volume import DEPTHS, Volume, cut, depth_axis
from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.pairfiles import IMAGES, LABELS
from fedfms.preprocessing.raw import LINKED_FOLDER, is_folder, sites_where
from fedfms.preprocessing.recipe import Decoded, Found, Pixels, RawCase, Recipe, add_choice, chosen
from fedfms.preprocessing.sitefiles import SEVERAL, Paths, sort_files

_AFFINE_TOLERANCE = 1e-3  # mm; float32 matrices of one scan from two programs differ by less
_MOST_VALUES = 8  # above 0, in a segmentation; an image in its place has hundreds
_SUFFIX = "_segmentation"


@dataclass(frozen=True)
class ValueRule:
    """How stored values of a segmentation become label values. 0 is background."""

    values: Mapping[int, int]  # label value by stored value
    above_zero: int | None = None  # label value of stored values that `values` does not name; None: they are a fault
    required: bool = True  # a volume without any structure is a fault

    def __call__(self, stored: Array) -> Pixels:
        """Label values, uint8, of stored values of any shape and numeric type.

        Raises:
            Fault: values that are not whole, not within 0..255 or not in the rule; no structure.
        """
        if stored.dtype.kind == "f":
            whole = np.rint(stored)
            if float(np.abs(stored - whole).max()) > 1e-3:  # a scale factor in the header may yield 3.9999998
                raise Fault("the segmentation has values that are not whole numbers")
            stored = whole
        low, high = int(stored.min()), int(stored.max())
        if low < 0 or high > 255:
            raise Fault(f"the segmentation has values from {low} to {high}, not within 0..255")
        flat: Pixels = stored.astype(np.uint8)
        label = self._table(np.flatnonzero(np.bincount(flat.reshape(-1))).tolist())[flat]
        if self.required and not label.any():
            raise Fault("the segmentation shows no structure, but every volume of this data set has one")
        return label

    def one(self, stored: int) -> int:
        """The label value of one stored value.

        Raises:
            Fault: the value is not within 0..255 or not in the rule.
        """
        if not 0 <= stored <= 255:
            raise Fault(f"the segmentation has the value {stored}, not within 0..255")
        return int(self._table([stored])[stored])

    def _table(self, present: list[int]) -> Pixels:
        """Label value by stored value, uint8 (256,)."""
        unknown = [value for value in present if value and value not in self.values]
        if self.above_zero is None and unknown:
            raise Fault(f"the segmentation has values {unknown[:8]} that the label rule does not name")
        if len(unknown) > _MOST_VALUES:
            raise Fault(f"the segmentation has {len(unknown)} different values above 0, so it is an image")
        table = np.zeros(256, dtype=np.uint8)
        table[unknown] = self.above_zero or 0
        table[list(self.values)] = list(self.values.values())
        return table


@dataclass(frozen=True)
class Scan:
    """Voxels and their position in space."""

    voxels: Array  # (X, Y, Z)
    affine: NDArray[np.float64]  # NIfTI's matrix (4, 4) from voxel indices to mm
    inverted: bool = False  # low values are bright
    padding: Mask | None = None  # voxels (X, Y, Z) outside of the scanner's field of view; None: no such voxels


def read_niftis(files: Mapping[str, Path]) -> tuple[Scan, Scan]:
    """The volume "image" and the segmentation "label" with stored values; errors as in `read_nifti`."""
    return Scan(*read_nifti(files["image"], "volume")), Scan(*read_nifti(files["label"], "segmentation"))


@dataclass(frozen=True)
class VolumeReader:
    """Reads a volume ("image") and its segmentation ("label") and cuts both into slices. Padding becomes black."""

    labels: ValueRule
    depth: str = DEPTHS[0]  # the axis to cut across, as in `fedfms.data.volume.depth_axis`
    neighbours: bool = False  # an image is a slice with its two neighbours as channels (`fedfms.data.volume.cut`)
    empty_every: int = 1  # slices without any structure are stored at positions that are a multiple of this
    intensity: Callable[[Array, Mask | None], Pixels] = eight_bits  # intensities and padding -> 8 bits
    read: Callable[[Mapping[str, Path]], tuple[Scan, Scan]] = read_niftis  # reads both files

    def __call__(self, case: RawCase) -> Decoded:
        """The slices and their position in the volume.

        Raises:
            Fault: a file is damaged, too large or no 3-D volume; sizes or positions in space differ; NaN or infinite
                voxels; hardly any contrast; stored label values that are not in the rule.
        """
        scan, segmentation = self.read(case.files)
        image, affine, stored = scan.voxels, scan.affine, segmentation.voxels
        if image.shape != stored.shape:
            sizes = [" x ".join(map(str, array.shape)) for array in (image, stored)]
            raise Fault(f"volume {sizes[0]} and segmentation {sizes[1]} differ in size")
        if float(np.abs(affine - segmentation.affine).max()) > _AFFINE_TOLERANCE:
            raise Fault("volume and segmentation lie at different places in space: their affines differ")
        label, pixels = self.labels(stored), self.intensity(image, scan.padding)
        if scan.inverted:
            pixels = 255 - pixels
        if scan.padding is not None:
            pixels[scan.padding] = 0
        axis = depth_axis(affine, self.depth)
        planes = [np.take(label, i, axis) for i in range(label.shape[axis])]
        positions = tuple(i for i, plane in enumerate(planes) if plane.any() or i % self.empty_every == 0)
        slices = tuple((cut(pixels, i, axis, neighbours=self.neighbours), planes[i]) for i in positions)
        first, second, third = image.shape
        return Decoded(slices, Volume((first, second, third), tuple(affine.ravel().tolist()), axis, positions))


def add_depth_option(parser: argparse.ArgumentParser) -> None:
    """Add `--depth` to a command."""
    add_choice(parser, "--depth", DEPTHS)


def volume_recipe(
    name: str, structures: tuple[LabelClass, ...], labels: ValueRule, arguments: argparse.Namespace
) -> Recipe:
    """The recipe of a data set of volumes in `RAW/<site>` with the option `--depth`."""
    read = VolumeReader(labels, arguments.depth)
    return Recipe(name, structures, volume_sites, find_volumes, read, chosen(arguments, "depth"))


def volume_sites(raw: Path) -> list[str]:
    """As `Recipe.sites`: folders directly below `raw` with volumes in themselves, in `images/` or in `labels/`."""

    def holds_volumes(folder: Path) -> bool:
        parts = [folder / part for part in ("", IMAGES, LABELS)]
        return any(is_folder(part) and any(map(stem_of, part.iterdir())) for part in parts)

    # images/ and labels/ are not sites: with them, --raw names a site's folder and not the folder above
    return [site for site in sites_where(raw, holds_volumes) if site not in (IMAGES, LABELS)]


def find_volumes(raw: Path, site: str) -> Found:
    """Volumes of a site `raw/<site>` ("image") and their segmentations ("label"), .nii or .nii.gz, by stem.

    Layouts, either or both: `images/x` with `labels/x` or `labels/x_segmentation`; `x` next to `x_segmentation`. The
    case of the suffix does not matter. Names do not identify patients, so each volume is a separate patient.
    """
    folder = raw / site
    files = sort_files(folder, lambda name: ("", "") if is_folder(folder / name) else _role(name))
    found, links = files.match(match_volume), [path for path in files.unused if is_folder(path)]
    faults = tuple((path.relative_to(folder).as_posix(), LINKED_FOLDER) for path in links)
    return replace(found, faults=found.faults + faults, ignored=found.ignored - len(links))


def match_volume(name: str, files: Paths) -> RawCase | str:
    """The case of a volume ("image") and its segmentation ("label"), or why they make no case."""
    images, labels = files.get("image", []), files.get("label", [])
    if len(images) == len(labels) == 1:
        return RawCase(name, name, {"image": images[0], "label": labels[0]})
    if images and labels:
        return SEVERAL
    return "the volume has no segmentation" if images else "the segmentation has no volume"


def _role(name: Path) -> tuple[str, str]:
    """Role of a file of a site and stem of its volume; ("", "") for other files."""
    stem = stem_of(name)
    top, inner = (name.parts[0], name.parent.parts[1:]) if len(name.parts) > 1 else ("", ())
    if not stem or top not in ("", IMAGES, LABELS):
        return "", ""
    is_label = top == LABELS or (top == "" and stem.lower().endswith(_SUFFIX))
    if is_label and stem.lower().endswith(_SUFFIX):
        stem = stem[: -len(_SUFFIX)]
    return "label" if is_label else "image", "/".join((*inner, stem))
