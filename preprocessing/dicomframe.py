"""The planes of DICOM files: where each lies in space, and what its stored values mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset

from fedfms.data.intensity import Mask
from fedfms.data.niftifile import Array
from preprocessing.images import Fault

SAME = 1e-3  # mm, and for direction cosines
_TO_RAS = np.array([-1.0, -1.0, 1.0])  # DICOM's x and y run to the patient's left and back, NIfTI's right and front


@dataclass(frozen=True)
class Frame:
    """A plane of a file: where its first voxel lies, the directions (2, 3) in which columns and rows are counted,
    the distances of rows and of columns in mm, and `value * slope + intercept` of what it stores.
    """

    file: int
    index: int
    position: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing: tuple[float, float]
    slope: float = 1.0
    intercept: float = 0.0

    def affine(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        """NIfTI's matrix (4, 4) of (row, column, slice), of slices that are `step` (3,) of DICOM's mm apart."""
        along_columns, along_rows = self.directions
        columns = (along_rows * self.spacing[0], along_columns * self.spacing[1], step, self.position)
        affine = np.eye(4)
        affine[:3] = np.stack(columns, axis=1) * _TO_RAS[:, None]
        return affine

    @property
    def normal(self) -> NDArray[np.float64]:
        """The direction (3,) across the plane."""
        return np.cross(*self.directions)


def frame_count(file: FileDataset) -> int:
    """How many planes a file has, at least 1."""
    return max(1, int(file.get("NumberOfFrames") or 1))


def frames_of(files: Sequence[FileDataset]) -> list[Frame]:
    """All planes of files, in the files' order.

    Raises:
        Fault: a plane says not where it lies.
    """
    return [_frame(file, at, index) for at, file in enumerate(files) for index in range(frame_count(file))]


def _frame(file: FileDataset, at: int, index: int) -> Frame:
    position = value_of(file, index, "PlanePositionSequence", "ImagePositionPatient")
    cosines = value_of(file, index, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = value_of(file, index, "PixelMeasuresSequence", "PixelSpacing")
    if not position or not cosines or not spacing:
        raise Fault("a slice says not where it lies (position, orientation, pixel spacing); write flat images as PNG")
    slope = value_of(file, index, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = value_of(file, index, "PixelValueTransformationSequence", "RescaleIntercept")
    directions = _numbers(cosines, 6).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > SAME:
        raise Fault("the orientation of a slice is none: its directions are not at right angles")
    rows, columns = _numbers(spacing, 2).tolist()
    scale = _numbers([1.0 if slope is None else slope, 0.0 if intercept is None else intercept], 2).tolist()
    return Frame(at, index, _numbers(position, 3), directions, (rows, columns), *scale)


def value_of(file: FileDataset, index: int, group: str, name: str) -> Any:
    """An element of a plane: its own, its file's functional group for all planes, or the file's itself."""
    own = file.get("PerFrameFunctionalGroupsSequence") or []
    shared = file.get("SharedFunctionalGroupsSequence") or []
    for groups in (own[index : index + 1], shared[:1]):
        for one in groups:
            if one.get(group):
                value = one[group].value[0].get(name)
                if value is not None:
                    return value
    return file.get(name)


def _numbers(raw: Any, count: int) -> NDArray[np.float64]:
    numbers = np.array([float(number) for number in raw])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise Fault("a slice's position, orientation, spacing or rescaling is no plain number")
    return numbers


def padding_of(file: FileDataset, pixels: Array) -> Mask | None:
    """Which of a file's pixels as stored, any shape, are padding (PS3.3 C.7.5.1.1.2); None if it names no value.

    Raises:
        Fault: the value is not one that a pixel can have.
    """
    value = file.get("PixelPaddingValue")
    if value is None:
        return None
    limit = file.get("PixelPaddingRangeLimit")
    signed, stored = pixels.dtype.kind == "i", int(file.BitsStored)
    # many a scanner writes -2000 as 63536, with the type of unsigned numbers
    ends = np.array([int(value), int(value if limit is None else limit)]).astype(pixels.dtype).astype(np.int64)
    low, high = int(ends.min()), int(ends.max())
    if low < (-(1 << stored - 1) if signed else 0) or high >= 1 << (stored - signed):
        raise Fault("the value of padding has more bits than a pixel")  # and such pixels have lost theirs
    return np.asarray((pixels >= low) & (pixels <= high))
