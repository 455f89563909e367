"""DICOM series and their segmentations: list the cases, assign patients, read a pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.uid import SegmentationStorage

from fedfms.data.niftifile import read_nifti, stem_of
from fedfms.preprocessing.dicomfile import INDEX, Stack, decode, files_of, read_files, read_header, read_series
from fedfms.preprocessing.dicomframe import Frame, frames_of
from fedfms.preprocessing.images import Fault, as_fault
from fedfms.preprocessing.pairfiles import Listing, PairFinder
from fedfms.preprocessing.raw import is_folder, readable, reject_outside
from fedfms.preprocessing.recipe import Found, Pixels, RawCase
from fedfms.preprocessing.volumes import Scan, ValueRule

_ENDING = ".dcm"
_ON_GRID = 0.05  # of a voxel: tolerance for the planes of a segmentation


def list_series(folder: Path, site: str) -> Listing:
    """The cases directly in a folder: each folder and each file is one, except DICOMDIR.

    A pipe or a device is a case too, so that `files_of` reports it unopened.

    Raises:
        DataError: the folder cannot be read.
    """
    listing = Listing()
    with readable(f"{folder.name}/", site=site):
        for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
            if path.name.upper() == INDEX:
                continue
            within = is_folder(path)
            if within and path.is_symlink():
                listing.linked.append(path.name)
            else:
                listing.files[path.name if within else _stem(path)].append(path)
    return listing


def _stem(path: Path) -> str:
    ending = path.name[-len(_ENDING) :]
    return path.name[: -len(_ENDING)] if ending.lower() == _ENDING else stem_of(path) or path.name


@dataclass(frozen=True)
class ByPatientId:
    """Cases of `find` with the PatientID of their files as patient; only its keyed hash is written."""

    find: PairFinder

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`; a case whose files name no patient, or several, is a fault."""
        found, root = self.find(raw, site), raw.resolve()

        def with_patient(case: RawCase) -> RawCase | str:
            try:
                return RawCase(case.name, _patient_id(root, case.files["image"]), case.files)
            except Fault as fault:
                return str(fault)

        entries = [*found.faults, *((name, with_patient(case)) for name, case in found.cases.items())]
        return Found.collect(entries, found.ignored)


def _patient_id(root: Path, path: Path) -> str:
    reject_outside(root, [path])  # before a file is opened
    with as_fault("volume"):
        ids = {str(read_header(one, ["PatientID"]).get("PatientID") or "").strip() for one in files_of(path, "volume")}
    if len(ids) > 1:
        raise Fault("the files are of several patients")
    if ids == {""}:
        raise Fault("the files name no patient (PatientID), so the patient is unknown")
    return ids.pop()


@dataclass(frozen=True)
class ReadDicom:
    """Reads a series and its segmentation: DICOM SEG, or a NIfTI volume on the same grid."""

    labels: ValueRule  # segments that it maps to one label value may overlap

    def __call__(self, files: Mapping[str, Path]) -> tuple[Scan, Scan]:
        """The volume "image", and the segmentation "label" on its grid, with stored values or segment numbers.

        Raises:
            Fault: a file cannot be read, or the segmentation lies on another grid.
        """
        scan, stack = read_series(files["image"])
        with as_fault("segmentation"):
            paths = files_of(files["label"], "segmentation")
            if len(paths) > 1:
                raise Fault("the segmentation's folder holds several files")
            if stem_of(paths[0]):
                return scan, reoriented(Scan(*read_nifti(paths[0], "segmentation")), scan.affine)
            return scan, self._segments(paths[0], scan, stack)

    def _segments(self, path: Path, scan: Scan, stack: Stack) -> Scan:
        (file,) = read_files([path], "segmentation")
        if file.get("SOPClassUID") != SegmentationStorage:
            raise Fault("the segmentation is DICOM, but not a DICOM SEG; write it as SEG or as NIfTI")
        if file.get("SegmentationType") != "BINARY":
            raise Fault("the segmentation is fractional; write it as a binary SEG")
        if stack.reference and file.get("FrameOfReferenceUID") not in (None, "", stack.reference):
            raise Fault("volume and segmentation have different frames of reference")
        frames, planes = frames_of([file]), decode(file)
        if planes.shape[1:] != scan.voxels.shape[:2]:
            raise Fault("volume and segmentation differ in the size of their slices")
        stored = np.zeros(scan.voxels.shape, dtype=np.uint8)
        numbers: dict[int, int] = {}  # first segment number by label value
        for frame, plane in zip(frames, planes, strict=True):
            if plane.any():
                number, slice_ = _segment(file, frame.index), _slice(frame, scan, stack)
                value = int(self.labels.one(number))
                if value:
                    _draw(stored[:, :, slice_], plane > 0, numbers.setdefault(value, number))
        return Scan(stored, scan.affine)


def _segment(file: FileDataset, index: int) -> int:
    """The segment number of a plane."""
    for group in (file.PerFrameFunctionalGroupsSequence[index], *file.get("SharedFunctionalGroupsSequence", [])[:1]):
        if "SegmentIdentificationSequence" in group:
            return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    raise Fault("a plane of the segmentation names no segment")


def _slice(frame: Frame, scan: Scan, stack: Stack) -> int:
    """The slice of the volume on which a plane of its segmentation lies.

    The plane may lie at the position in the slice's file or on the volume's even grid; the two differ where positions
    in the series are rounded.
    """
    to_index, still = np.linalg.inv(scan.affine), np.zeros(3)
    rows, columns = np.subtract(scan.voxels.shape[:2], 1)
    # the plane's corners in the volume's indices, because a small rotation shows at the corners only
    corners = np.array([[0, 0, 0, 1], [rows, 0, 0, 1], [0, columns, 0, 1]], dtype=np.float64)
    moved = corners @ (to_index @ frame.affine(still))[:3].T
    slice_ = int(np.rint(moved[0, 2]))
    if not 0 <= slice_ < len(stack.frames):
        raise Fault("a plane of the segmentation lies above or below the volume")
    places = (to_index @ stack.frames[slice_].affine(still))[:3, 3], np.array([0, 0, slice_])
    if min(np.abs(moved - corners[:, :3] - place).max() for place in places) > _ON_GRID:
        raise Fault("volume and segmentation lie at different places in space: a plane is on no slice")
    return slice_


def _draw(into: Pixels, mask: NDArray[np.bool_], number: int) -> None:
    existing = into[mask]
    if ((existing != 0) & (existing != number)).any():
        raise Fault("segments of different label values overlap; give them one in `values`, or give one of them 0")
    into[mask] = number


def reoriented(scan: Scan, affine: NDArray[np.float64]) -> Scan:
    """A volume with axes in the order and direction of another `affine` (4, 4).

    Programs that write NIfTI from DICOM flip rows.
    """
    axes = io_orientation(np.linalg.inv(affine) @ scan.affine)
    if np.isnan(axes).any():
        return scan  # without common axes, the comparison of the affines reports it
    turned = scan.affine @ inv_ornt_aff(axes, scan.voxels.shape)
    return Scan(apply_orientation(scan.voxels, axes), turned)
