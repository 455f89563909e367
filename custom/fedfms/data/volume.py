"""How a volume is cut into slices, where the slices of a case lie in it, and putting them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedfms.data.plain import CONVERT, exact, finite, of
from fedfms.errors import DataError

if TYPE_CHECKING:
    from nibabel import Nifti1Image

DEPTHS = ("coarsest", "third")
_SAME_SPACING = 0.99  # spacings closer than this count as equal, and then the third axis is taken


@dataclass(frozen=True)
class Volume:
    """A volume of `shape` voxels and its slices: slice k is `np.take(array, positions[k], axis)`, unchanged, so
    its height and width are the other two axes in their order.

    `affine` is NIfTI's matrix (4 x 4) from voxel indices to mm, 16 numbers row by row.
    """

    shape: tuple[int, int, int]
    affine: tuple[float, ...]
    axis: int
    positions: tuple[int, ...]  # strictly increasing, one for each slice of the case

    def fault(self, sizes: Sequence[tuple[int, int]]) -> str:
        """What is wrong with it for slices of (height, width) in pixels, in order; empty if nothing is."""
        if len(self.shape) != 3 or min(self.shape) < 1:
            return "the volume's shape is not three numbers above 0"
        if len(self.affine) != 16:
            return f"the volume's affine has {len(self.affine)} numbers, not 16"
        if self.axis not in (0, 1, 2):
            return f"the volume's axis {self.axis} is not 0, 1 or 2"
        if len(self.positions) != len(sizes):
            return f"the volume has {len(self.positions)} positions for {len(sizes)} slices"
        if not all(0 <= position < self.shape[self.axis] for position in self.positions):
            return "a position is outside the volume"
        if any(one >= two for one, two in zip(self.positions, self.positions[1:], strict=False)):
            return "the positions are not strictly increasing"
        due = tuple(length for axis, length in enumerate(self.shape) if axis != self.axis)
        wrong = next((number for number, size in enumerate(sizes) if tuple(size) != due), None)
        return "" if wrong is None else f"slice {wrong} has not the size of the volume's other two axes"


def parse_volume(raw: Any, where: str) -> Volume | None:
    """The volume that plain JSON values describe; None for None. Its fit to slices is `Volume.fault`.

    Raises:
        DataError: other keys or kinds of values, or an affine that is not finite.
    """
    if raw is None:
        return None
    raw = exact(raw, Volume, where)
    lengths = tuple(of(length, int, where) for length in of(raw["shape"], list, where))
    if len(lengths) != 3:
        raise DataError("the volume's shape is not three numbers", where=where, do=CONVERT)
    return Volume(
        shape=(lengths[0], lengths[1], lengths[2]),
        affine=tuple(finite(number, where) for number in of(raw["affine"], list, where)),
        axis=of(raw["axis"], int, where),
        positions=tuple(of(position, int, where) for position in of(raw["positions"], list, where)),
    )


def depth_axis(affine: NDArray[np.float64], depth: str) -> int:
    """The axis (0, 1, 2) to cut across, by the affine (4, 4) of the volume: `depth` "coarsest" is the axis of the
    coarsest spacing (the third where spacings are equal), "third" the third axis whatever the spacing.
    """
    if depth == "third":
        return 2
    from nibabel.affines import voxel_sizes  # here: as in `to_nifti`

    spacing = voxel_sizes(affine)
    return int(max(np.flatnonzero(spacing >= _SAME_SPACING * spacing.max())))


def cut(pixels: NDArray[np.uint8], position: int, axis: int, *, neighbours: bool) -> NDArray[np.uint8]:
    """The slice (H, W) of a volume at a position, or with `neighbours` (H, W, 3): the slices before, at and after it;
    at either end of the volume, the end slice again.
    """
    if not neighbours:
        return np.take(pixels, position, axis)
    around = (position - 1, position, position + 1)
    # "clip": the slice before the first is the first, the slice after the last is the last
    return np.stack([np.take(pixels, i, axis, mode="clip") for i in around], axis=-1)


def to_nifti(volume: Volume, slices: Sequence[NDArray[np.uint8]]) -> Nifti1Image:
    """The label volume, uint8 of `volume.shape`, that slices of label values, uint8 (H, W) at native size and one
    for each position, were cut from; 0 where no slice is. Its affine is the original's, its header is new.

    Raises:
        DataError: slices that do not fit the volume, in number, size or kind.
    """
    import nibabel  # here: the manifest needs `Volume`, and this import takes longer than all of the others

    fault = volume.fault([(slice_.shape[0], slice_.shape[1]) if slice_.ndim == 2 else (0, 0) for slice_ in slices])
    if not fault and any(slice_.dtype != np.uint8 for slice_ in slices):
        fault = "a slice of label values is not of 8 bits"
    if fault:
        raise DataError(fault, where="volume to put back", do="give each slice of the case, at its own size")
    array = np.zeros(volume.shape, dtype=np.uint8)
    along = np.moveaxis(array, volume.axis, 0)  # a view: what is set in it is set in the array
    for position, slice_ in zip(volume.positions, slices, strict=True):
        along[position] = slice_
    image = nibabel.Nifti1Image(array, np.asarray(volume.affine, dtype=np.float64).reshape(4, 4))
    image.header.set_xyzt_units("mm")
    return image
