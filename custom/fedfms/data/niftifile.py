"""Reads voxels and affine of a NIfTI file; every defect is a `Fault`, which names neither file nor header field."""

import gzip
import math
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fedfms.data.imagefile import Fault, as_fault

Array = NDArray[Any]
ENDINGS = (".nii.gz", ".nii")
MAX_BYTES = 1 << 30  # of a volume as float64: 512 x 512 x 512 voxels; a header may promise any number
_MAX_PADDING = 1 << 20  # bytes that some programs write after the voxels
_GZIP = b"\x1f\x8b"
_KINDS: dict[int, type[nib.Nifti1Image]] = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the header's length


def stem_of(path: Path) -> str:
    """The name of a NIfTI file without its ending (.nii.gz or .nii, upper or lower case); "" for other files."""
    name = path.name.lower()
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    return path.name[: -len(ending)] if ending else ""


def read_nifti(path: Path, what: str) -> tuple[Array, NDArray[np.float64]]:
    """Voxels (X, Y, Z), integers or finite floats with the header's scaling, and the affine (4, 4) to mm.

    Axes of length 1 after the third are dropped. `what` ("volume", "segmentation") names the file in a fault.

    Raises:
        Fault: missing, damaged, truncated, too large, not three axes, not plain numbers, NaN or infinite voxels, a
            singular affine.
    """
    with as_fault(what):
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP  # not by the ending: some .nii.gz files were unpacked and not renamed
            file.seek(0)
            kind, contents = _contents(gzip.GzipFile(fileobj=file) if packed else file, what)
        image: Any = kind.from_bytes(contents)
        array, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)
    array = array.reshape(array.shape[:3])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Fault(f"the {what} has voxels that are NaN or infinite")
    check_place(affine, what)
    return array, affine


def check_place(affine: NDArray[np.float64], what: str) -> None:
    """Check that an affine (4, 4) is finite and invertible.

    Raises:
        Fault: it is not.
    """
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise Fault(f"the {what}'s affine is not finite or not invertible")


def _contents(stream: IO[bytes] | gzip.GzipFile, what: str) -> tuple[type[nib.Nifti1Image], bytes]:
    """The kind of file, and its content.

    Reading to the end verifies the gzip checksum (nibabel stops at the last voxel). The size limit keeps voxels and
    header extensions from exhausting memory.
    """
    first = stream.read(max(_KINDS))
    lengths = {int.from_bytes(first[:4], "little"), int.from_bytes(first[:4], "big")} & _KINDS.keys()
    if not lengths:
        raise Fault(f"the {what} is not a NIfTI file")
    length = lengths.pop()
    header = _KINDS[length].header_class(first[:length])
    if bytes(header["magic"].item())[1:2] != b"+":
        raise Fault(f"the {what} is a header without voxels; write it as one .nii.gz")
    shape = header.get_data_shape()
    _check_shape(shape, header.get_data_dtype(), what)
    expected = int(header["vox_offset"]) + math.prod(shape) * header.get_data_dtype().itemsize
    if expected > MAX_BYTES:
        raise Fault(f"the {what} has more than {MAX_BYTES >> 20} MB")
    contents = first + stream.read(expected + _MAX_PADDING - len(first))
    if stream.read(1):
        raise Fault(f"the {what} has data after its last voxel")
    return _KINDS[length], contents


def _check_shape(shape: tuple[int, ...], kind: np.dtype[Any], what: str) -> None:
    """Check shape and dtype that a header promises, before the voxels are read."""
    lengths = " x ".join(map(str, shape))
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise Fault(f"the {what} has {len(shape)} axes ({lengths}), not 3; write one file per volume")
    if min(shape) < 1:
        raise Fault(f"the {what} has an axis of length 0 ({lengths})")
    if kind.kind not in "iuf":
        raise Fault(f"the {what} has colours or complex numbers, not one number per voxel")
    if math.prod(map(int, shape)) * 8 > MAX_BYTES:
        raise Fault(f"the {what} has {lengths} voxels, more than {MAX_BYTES // 8}")
