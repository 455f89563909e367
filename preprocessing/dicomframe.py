"""The planes of DICOM files: position in space, rescaling and padding of stored values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset

from fedfms.data.intensity import Mask
from fedfms.data.niftifile import Array
from fedfms.preprocessing.images import Fault

SAME = 1e-3  # tolerance in mm, and for direction cosines
_TO_RAS = np.array([-1.0, -1.0, 1.0])  # DICOM: x to the patient's left, y to the back; NIfTI: right and front


@dataclass(frozen=True)
class Frame:
    """A plane of a file."""

    file: int  # index of the file
    index: int  # index of the plane in its file
    position: NDArray[np.float64]  # (3,), of the first voxel
    directions: NDArray[np.float64]  # (2, 3), in which columns and rows are counted
    spacing: tuple[float, float]  # of rows and of columns, in mm
    slope: float = 1.0
    intercept: float = 0.0  # the rescaled value is stored value * slope + intercept

    def affine(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        """NIfTI's matrix (4, 4) from (row, column, slice) to mm; `step` (3,), in DICOM's mm, is between slices."""
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
    """The number of planes in a file, at least 1."""
    return max(1, int(file.get("NumberOfFrames") or 1))


def frames_of(files: Sequence[FileDataset]) -> list[Frame]:
    """All planes of files, in the order of the files.

    Raises:
        Fault: a plane has no position.
    """
    return [_frame(file, at, index) for at, file in enumerate(files) for index in range(frame_count(file))]


def _frame(file: FileDataset, at: int, index: int) -> Frame:
    position = value_of(file, index, "PlanePositionSequence", "ImagePositionPatient")
    cosines = value_of(file, index, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = value_of(file, index, "PixelMeasuresSequence", "PixelSpacing")
    if not position or not cosines or not spacing:
        raise Fault("a slice has no position, orientation or pixel spacing; write flat images as PNG")
    slope = value_of(file, index, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = value_of(file, index, "PixelValueTransformationSequence", "RescaleIntercept")
    directions = _numbers(cosines, 6).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > SAME:
        raise Fault("the orientation of a slice is invalid: its directions are not at right angles")
    rows, columns = _numbers(spacing, 2).tolist()
    scale = _numbers([1.0 if slope is None else slope, 0.0 if intercept is None else intercept], 2).tolist()
    return Frame(at, index, _numbers(position, 3), directions, (rows, columns), *scale)


def value_of(file: FileDataset, index: int, group: str, name: str) -> Any:
    """An element of a plane: from its own functional groups, the shared ones, or the file itself, in this order."""
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
        raise Fault("a slice's position, orientation, spacing or rescaling is not a finite number")
    return numbers


def padding_of(file: FileDataset, pixels: Array) -> Mask | None:
    """Which stored pixels of a file, of any shape, are padding (PS3.3 C.7.5.1.1.2); None if no value is declared.

    Raises:
        Fault: a pixel cannot have the declared value.
    """
    value = file.get("PixelPaddingValue")
    if value is None:
        return None
    limit = file.get("PixelPaddingRangeLimit")
    signed, stored = pixels.dtype.kind == "i", int(file.BitsStored)
    # some scanners write -2000 as 63536, with the type of unsigned numbers
    ends = np.array([int(value), int(value if limit is None else limit)]).astype(pixels.dtype).astype(np.int64)
    low, high = int(ends.min()), int(ends.max())
    if low < (-(1 << stored - 1) if signed else 0) or high >= 1 << (stored - signed):
        raise Fault("the padding value has more bits than a pixel")  # so the padding pixels cannot be recognised
    return np.asarray((pixels >= low) & (pixels <= high))
