"""Volumes: cut into slices, the position of a case's slices in the volume, and reassembly into a NIfTI image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from fedfms.errors import DataError
from fedfms.schema import STRICT

if TYPE_CHECKING:
    from nibabel import Nifti1Image

DEPTHS = ("coarsest", "third")
_SAME_SPACING = 0.99  # spacings closer than this ratio count as equal


@dataclass(frozen=True)
class Volume:
    """A volume of `shape` voxels and its slices: slice k is `np.take(array, positions[k], axis)`.

    The height and width of a slice are the other two axes in their order. Types are checked when a manifest is read,
    not in code: the reader of a data set may give NumPy's numbers.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    shape: tuple[int, int, int]
    affine: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    """NIfTI's matrix (4 x 4) from voxel indices to mm, 16 numbers row by row."""
    axis: int
    positions: tuple[int, ...]
    """Strictly increasing, one for each slice of the case."""

    def fault(self, sizes: Sequence[tuple[int, int]]) -> str:
        """What is wrong with it for slices of (height, width) in pixels, in order; empty if nothing is."""
        if min(self.shape) < 1:
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
        expected = tuple(length for axis, length in enumerate(self.shape) if axis != self.axis)
        wrong = next((number for number, size in enumerate(sizes) if tuple(size) != expected), None)
        return "" if wrong is None else f"slice {wrong} does not have the size of the volume's other two axes"


def depth_axis(affine: NDArray[np.float64], depth: str) -> int:
    """The axis (0, 1, 2) to cut across, from the volume's affine (4, 4).

    `depth` "coarsest": the axis of the coarsest spacing, the last of several equal ones. "third": the third axis.
    """
    if depth == "third":
        return 2
    from nibabel.affines import voxel_sizes  # slow to import, as in `to_nifti`

    spacing = voxel_sizes(affine)
    return int(max(np.flatnonzero(spacing >= _SAME_SPACING * spacing.max())))


def cut(pixels: NDArray[np.uint8], position: int, axis: int, *, neighbours: bool) -> NDArray[np.uint8]:
    """The slice (H, W) of a volume at a position.

    With `neighbours` (H, W, 3): the slices before, at and after it. The ends of the volume repeat their slice.
    """
    if not neighbours:
        return np.take(pixels, position, axis)
    around = (position - 1, position, position + 1)
    return np.stack([np.take(pixels, i, axis, mode="clip") for i in around], axis=-1)


def to_nifti(volume: Volume, slices: Sequence[NDArray[np.uint8]]) -> Nifti1Image:
    """The label volume, uint8 of `volume.shape`, reassembled from its slices; 0 where there is no slice.

    Args:
        slices: label values, uint8 (H, W) at native size, one for each position.

    Returns:
        An image with the original's affine and an otherwise new header.

    Raises:
        DataError: slices that do not fit the volume in number, size or dtype.
    """
    import nibabel  # slow to import, and most users of `Volume` do not need it

    fault = volume.fault([(slice_.shape[0], slice_.shape[1]) if slice_.ndim == 2 else (0, 0) for slice_ in slices])
    if not fault and any(slice_.dtype != np.uint8 for slice_ in slices):
        fault = "a slice of label values is not uint8"
    if fault:
        raise DataError(fault, where="volume to reassemble", do="give each slice of the case at its native size")
    array = np.zeros(volume.shape, dtype=np.uint8)
    view = np.moveaxis(array, volume.axis, 0)
    for position, slice_ in zip(volume.positions, slices, strict=True):
        view[position] = slice_
    image = nibabel.Nifti1Image(array, np.asarray(volume.affine, dtype=np.float64).reshape(4, 4))
    image.header.set_xyzt_units("mm")
    return image
