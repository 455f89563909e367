"""NIfTI volumes and their segmentations -> slices in 8 bits: how a pair of files is found, checked and cut.

Slices keep the array's orientation, order and size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfms.data.intensity import Mask, eight_bits
from fedfms.data.niftifile import Array, read_nifti, stem_of
from fedfms.data.volume import DEPTHS, Volume, cut, depth_axis
from fedfms.errors import DataError
from preprocessing.images import Fault
from preprocessing.pairfiles import IMAGES, LABELS
from preprocessing.raw import RIGHTS, is_folder, reason, split_by_access, walk
from preprocessing.recipe import Decoded, Found, Pixels, RawCase

_AFFINE_TOLERANCE = 1e-3  # mm; two programs' float32 matrices of one scan differ by less
_MOST_VALUES = 8  # above 0, in a segmentation; an image put in its place has hundreds
_SUFFIX = "_segmentation"


@dataclass(frozen=True)
class ValueRule:
    """How stored values of a segmentation become label values.

    0 is background. `values` maps other stored values to label values; `above_zero`, if given, is the label value
    of all that it does not name, and without it they are a fault. `required`: a volume with no structure at all
    is a fault.
    """

    values: Mapping[int, int]
    above_zero: int | None = None
    required: bool = True

    def __call__(self, stored: Array) -> Pixels:
        """Label values, uint8, of stored values of any shape and kind of number.

        Raises:
            Fault: values that are not whole, not within 0..255, not in the rule, or none of a structure.
        """
        if stored.dtype.kind == "f":
            whole = np.rint(stored)
            if float(np.abs(stored - whole).max()) > 1e-3:  # a stored scale factor may leave 3.9999998
                raise Fault("the segmentation has values that are not whole numbers")
            stored = whole
        low, high = int(stored.min()), int(stored.max())
        if low < 0 or high > 255:
            raise Fault(f"the segmentation has values from {low} to {high}, not within 0..255")
        flat: Pixels = stored.astype(np.uint8)
        label = self._table(np.flatnonzero(np.bincount(flat.reshape(-1))).tolist())[flat]
        if self.required and not label.any():
            raise Fault("the segmentation shows no structure, and every volume here has one")
        return label

    def one(self, stored: int) -> int:
        """The label value of one stored value.

        Raises:
            Fault: it is not within 0..255, or not in the rule.
        """
        if not 0 <= stored <= 255:
            raise Fault(f"the segmentation has the value {stored}, not within 0..255")
        return int(self._table([stored])[stored])

    def _table(self, present: list[int]) -> Pixels:
        table = np.zeros(256, dtype=np.uint8)
        odd = [value for value in present if value and value not in self.values]
        if self.above_zero is None and odd:
            raise Fault(f"the segmentation has values {odd[:8]} that the label rule does not name")
        if len(odd) > _MOST_VALUES:
            raise Fault(f"the segmentation has {len(odd)} different values above 0, so it is an image")
        table[odd] = self.above_zero or 0
        for source, value in self.values.items():
            table[source] = value
        return table


@dataclass(frozen=True)
class Scan:
    """Voxels (X, Y, Z), their affine (4, 4) from indices to mm as NIfTI has it, whether low values are bright, and
    which voxels (X, Y, Z) are padding, None if none is: what a scanner wrote outside of what it has seen.
    """

    voxels: Array
    affine: NDArray[np.float64]
    inverted: bool = False
    padding: Mask | None = None


def read_niftis(files: Mapping[str, Path]) -> tuple[Scan, Scan]:
    """The volume and the segmentation, stored values, of the NIfTI files "image" and "label".

    Raises:
        Fault: as `read_nifti`.
    """
    return Scan(*read_nifti(files["image"], "volume")), Scan(*read_nifti(files["label"], "segmentation"))


@dataclass(frozen=True)
class VolumeReader:
    """Reads a volume ("image") and its segmentation ("label"), and cuts both.

    Args:
        depth: the axis to cut across, as in `fedfms.data.volume.depth_axis`.
        neighbours: an image is a position's slice and its two neighbours (`fedfms.data.volume.cut`).
        empty_every: of slices with no structure, those whose position is a multiple of this are kept.
        intensity: makes intensities 8 bits, by default `eight_bits`; padding is black whatever it makes of it.
        read: reads both files.
    """

    labels: ValueRule
    depth: str = DEPTHS[0]
    neighbours: bool = False
    empty_every: int = 1
    intensity: Callable[[Array, Mask | None], Pixels] = eight_bits
    read: Callable[[Mapping[str, Path]], tuple[Scan, Scan]] = read_niftis

    def __call__(self, case: RawCase) -> Decoded:
        """Slices, and where they lie.

        Raises:
            Fault: a file is damaged, too large or no 3-D volume; sizes or places in space differ; NaN or infinite
                voxels; hardly any contrast; stored label values that the rule does not foresee.
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
        place = Volume((first, second, third), tuple(map(float, affine.reshape(-1))), axis, positions)
        return Decoded(slices, place)


def volume_sites(raw: Path) -> list[str]:
    """Folders directly below `raw` that hold volumes, in themselves or in `images/` or `labels/`, by name.

    Raises:
        DataError: `raw` cannot be read; OSError: a folder in it.
    """
    # images/ and labels/ themselves are no sites: then --raw named a site's folder and not the one above
    folders = [folder for folder in split_by_access(raw)[0] if folder.name not in (IMAGES, LABELS)]
    return [folder.name for folder in folders if any(_holds_volumes(folder / part) for part in ("", IMAGES, LABELS))]


def _holds_volumes(folder: Path) -> bool:
    return is_folder(folder) and any(stem_of(path) for path in folder.iterdir())


@dataclass(frozen=True)
class VolumeFinder:
    """Volumes of a site `raw/<site>` and their segmentations, .nii or .nii.gz, in either layout or both:
    `images/x` + `labels/x` (or `labels/x_segmentation`), and `x` + `x_segmentation` beside each other. Upper and
    lower case of the suffix are the same. No name tells whose volume it is: each is a patient of its own.
    """

    def __call__(self, raw: Path, site: str) -> Found:
        """Cases by the volume's stem, of the files "image" and "label".

        Raises:
            DataError: a folder cannot be read.
        """
        roles: dict[str, dict[str, list[Path]]] = {"image": defaultdict(list), "label": defaultdict(list)}
        cases: dict[str, RawCase] = {}
        faults: list[tuple[str, str]] = []
        ignored = 0
        for name, path in _files(raw / site, site):
            role, stem = ("", "") if is_folder(path) else _role(name)
            if role:
                roles[role][stem].append(path)
            elif is_folder(path):
                faults.append((name.as_posix(), "a link to a folder is not followed; put the folder itself there"))
            else:
                ignored += 1
        for stem in sorted(roles["image"].keys() | roles["label"].keys()):
            images, labels = roles["image"][stem], roles["label"][stem]
            if len(images) == len(labels) == 1:
                cases[stem] = RawCase(stem, stem, {"image": images[0], "label": labels[0]})
            elif images and labels:
                faults.append((stem, "several files of this name"))
            else:
                missing = "the volume has no segmentation" if images else "the segmentation has no volume"
                faults.append((stem, missing))
        return Found(cases, tuple(faults), ignored)


def _files(folder: Path, site: str) -> list[tuple[Path, Path]]:
    """Names relative to the folder, and paths, of all that lies below it and is not hidden, sorted."""
    try:
        found = [(path.relative_to(folder), path) for path in sorted(walk(folder))]
    except OSError as error:
        raise DataError(f"a folder cannot be read: {reason(error)}", where=f"site {site}", do=RIGHTS) from error
    return [(name, path) for name, path in found if not any(part.startswith(".") for part in name.parts)]


def _role(name: Path) -> tuple[str, str]:
    """What a file of a site is, and the stem of its volume; "" for one that is neither."""
    stem = stem_of(name)
    top, inner = (name.parts[0], name.parent.parts[1:]) if len(name.parts) > 1 else ("", ())
    if not stem or top not in ("", IMAGES, LABELS):
        return "", ""
    is_label = top == LABELS or (top == "" and stem.lower().endswith(_SUFFIX))
    if is_label and stem.lower().endswith(_SUFFIX):
        stem = stem[: -len(_SUFFIX)]
    return "label" if is_label else "image", "/".join((*inner, stem))
