"""A DICOM series of single-frame files, or one multi-frame file -> voxels and their position in space.

Every defect is a `Fault`. Of a file's header, only the elements in `_TAGS` are read: no name, id or date. Deflated
files are rejected unread, because pydicom inflates them to any size. The engine suppresses warnings, because those of
pydicom quote header values.
"""

import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian

from fedfms.data.intensity import Mask
from fedfms.data.niftifile import MAX_BYTES, Array, check_place
from fedfms.preprocessing.dicomframe import SAME, Frame, frame_count, frames_of, padding_of, value_of
from fedfms.preprocessing.images import Fault, as_fault
from fedfms.preprocessing.raw import LINKED_FOLDER, is_folder, visible_files
from fedfms.preprocessing.volumes import Scan

INDEX = "DICOMDIR"  # a table of paths; it is never read
_EVEN = 0.1  # of the median gap, by which gaps may differ: some scanners round positions to 0.1 mm
_GREY = ("MONOCHROME1", "MONOCHROME2")
_NEEDED = ("PixelData", "Rows", "Columns", "BitsAllocated", "PixelRepresentation")
_DECODE = "write them uncompressed (dcmdjpeg, gdcmconv --raw), or install python-gdcm"
_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "SegmentationType", "PixelData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip


def files_of(path: Path, what: str) -> list[Path]:
    """The files of a case's `what` ("volume", "segmentation"), unread: `path` itself, or the visible files below it.

    Raises:
        Fault: there are no files, they are too large, or one is a link to a folder, a pipe or a device.
        OSError: a file or folder cannot be accessed.
    """
    files = [one for one in visible_files(path) if one.name.upper() != INDEX] if is_folder(path) else [path]
    if not files:
        raise Fault("the case's folder holds no files")
    found = [one.stat() for one in files]
    if any(stat.S_ISDIR(one.st_mode) for one in found):
        raise Fault(LINKED_FOLDER)
    if not all(stat.S_ISREG(one.st_mode) for one in found):
        raise Fault("one of its files is neither a file nor a folder")  # opening a pipe may block forever
    if sum(one.st_size for one in found) > MAX_BYTES:
        raise Fault(f"the {what} has more than {MAX_BYTES >> 20} MB")
    return files


def read_header(path: Path, tags: Sequence[str], pixels: bool = False) -> FileDataset:
    """The elements `tags` of a DICOM file; without `pixels`, only those before the pixel data.

    Raises:
        Fault: the file is not DICOM, or deflated. pydicom may raise any other error.
    """
    try:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise Fault("a file is deflated as a whole; write it uncompressed")
        return dcmread(path, stop_before_pixels=not pixels, specific_tags=list(tags))
    except InvalidDicomError as error:
        raise Fault("one of its files is not a DICOM file") from error


def read_files(paths: Sequence[Path], what: str) -> list[FileDataset]:
    """Headers and encoded pixels of the files of a case's `what`, after checks of what the headers declare.

    Raises:
        Fault: too many voxels, no pixels, several numbers per pixel, a high bit that is not the last stored bit, no
            decoder.
    """
    files = [read_header(path, _TAGS, pixels=True) for path in paths]
    voxels = 0
    for file in files:
        if not all(name in file for name in _NEEDED):
            raise Fault(f"one of the {what}'s files has no pixel data, or is cut short")
        if file.get("SamplesPerPixel", 1) != 1 or file.get("PhotometricInterpretation") not in _GREY:
            raise Fault(f"the {what} has colours, not one number per voxel")
        stored = int(file.get("BitsStored", file.BitsAllocated))
        if file.get("HighBit", stored - 1) != stored - 1:  # pydicom would read other bits without an error
            raise Fault(f"the {what}'s highest bit is not that of its stored bits; write the files again")
        voxels += math.prod((int(file.Rows), int(file.Columns), frame_count(file)))
        if voxels * 8 > MAX_BYTES:
            raise Fault(f"the {what} has more than {MAX_BYTES // 8} voxels")
        _need_decoder(file, what)
    return files


def _need_decoder(file: FileDataset, what: str) -> None:
    try:
        known = get_decoder(file.file_meta.TransferSyntaxUID).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise Fault(f"the {what}'s files are compressed, and no decoder for them is installed; {_DECODE}")


def decode(file: FileDataset) -> Array:
    """The planes of a file as stored, (frames, H, W). pydicom and its decoders may raise any error."""
    pixels: Array = file.pixel_array
    del file.PixelData  # frees the encoded pixels
    return pixels.reshape(frame_count(file), int(file.Rows), int(file.Columns))


@dataclass(frozen=True)
class Stack:
    """The planes of a volume, by slice, at the positions in their files."""

    frames: tuple[Frame, ...]
    reference: str  # UID of the frame of reference; "" if the files have none


def read_series(path: Path) -> tuple[Scan, Stack]:
    """The volume of one series and its planes.

    Voxels are (row, column, slice), float32, rescaled. Slices are ordered along the normal of their plane and placed on
    an even grid.

    Raises:
        Fault: a file is missing, damaged, too large, not DICOM, without pixels, or cannot be decoded; several series,
            sizes, orientations or spacings; missing or duplicate slices.
    """
    with as_fault("volume"):
        files = read_files(files_of(path, "volume"), "volume")
        frames = frames_of(files)
        _check_alike(files, frames)
        order = sorted(range(len(frames)), key=lambda at: float(frames[at].position @ frames[0].normal))
        frames = [frames[at] for at in order]
        affine = frames[0].affine(_step(files, frames))
        check_place(affine, "volume")
        voxels, padding = _fill(files, frames)
        stack = Stack(tuple(frames), str(files[0].get("FrameOfReferenceUID") or ""))
        return Scan(voxels, affine, _inverted(files), padding), stack


def _check_alike(files: Sequence[FileDataset], frames: Sequence[Frame]) -> None:
    """Check that files and planes can be of one volume."""
    if len({file.get("SeriesInstanceUID") for file in files}) > 1:
        raise Fault("the folder holds files of several series; put one series in a case's folder")
    if len({(file.Rows, file.Columns) for file in files}) > 1:
        raise Fault("the slices differ in size")
    if any("ModalityLUTSequence" in file for file in files):
        raise Fault("the volume's values are mapped by a lookup table; write it with a rescale slope")
    first = frames[0]
    if any(np.abs(frame.directions - first.directions).max() > SAME for frame in frames):
        raise Fault("the slices differ in orientation: a localizer, or several stacks, in one folder")
    if any(np.abs(np.subtract(frame.spacing, first.spacing)).max() > SAME for frame in frames):
        raise Fault("the slices differ in pixel spacing")


def _inverted(files: Sequence[FileDataset]) -> bool:
    kinds = {file.PhotometricInterpretation for file in files}
    if len(kinds) > 1:
        raise Fault("in some slices low values are bright, in others dark")
    return bool(kinds == {_GREY[0]})


def _step(files: Sequence[FileDataset], frames: Sequence[Frame]) -> NDArray[np.float64]:
    """The vector (3,) from one slice to the next in DICOM's mm. With a tilted gantry, it is not along the normal.

    Raises:
        Fault: the planes are not evenly spaced along one line.
    """
    if len(frames) == 1:
        thickness = value_of(files[0], 0, "PixelMeasuresSequence", "SpacingBetweenSlices")
        thickness = thickness or value_of(files[0], 0, "PixelMeasuresSequence", "SliceThickness")
        return frames[0].normal * float(thickness or 1.0)  # with one plane, it moves no voxel
    positions = np.stack([frame.position for frame in frames])
    gaps = np.diff(positions @ frames[0].normal)
    usual = float(np.median(gaps))
    if gaps.min() < _EVEN * usual or usual <= SAME:
        raise Fault("several slices have one position: several acquisitions, phases or echoes in one folder")
    if np.abs(gaps - usual).max() > _EVEN * usual + SAME:  # 1.1 - 1.0 > 0.1 * 1.0
        what = f"the largest gap is {gaps.max() / usual:.2f} times the median gap"
        raise Fault(f"slices are missing or not evenly spaced: {what}")
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    straight = positions[0] + np.arange(len(frames))[:, None] * step
    if np.abs(positions - straight).max() > max(_EVEN * usual, SAME):
        raise Fault("the slices do not lie along one straight line")
    return np.asarray(step, dtype=np.float64)


def _fill(files: Sequence[FileDataset], frames: Sequence[Frame]) -> tuple[NDArray[np.float32], Mask | None]:
    """Rescaled voxels, and which of them are padding; None if no voxel is."""
    rows, columns = int(files[0].Rows), int(files[0].Columns)
    voxels = np.empty((rows, columns, len(frames)), dtype=np.float32)
    padding: Mask | None = None
    for at, file in enumerate(files):
        pixels = decode(file)
        padded = padding_of(file, pixels)
        for slice_, frame in enumerate(frames):
            if frame.file == at:
                voxels[:, :, slice_] = pixels[frame.index] * frame.slope + frame.intercept
                if padded is not None and padded[frame.index].any():
                    padding = np.zeros(voxels.shape, dtype=np.bool_) if padding is None else padding
                    padding[:, :, slice_] = padded[frame.index]
    if not np.isfinite(voxels).all():
        raise Fault("the volume has voxels that are NaN or infinite")
    return voxels, padding
