"""DICOM series and their segmentations: which belong together, whose they are, and how a pair is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.uid import SegmentationStorage

from fedfms.data.niftifile import read_nifti, stem_of
from fedfms.errors import DataError
from preprocessing.dicomfile import INDEX, Stack, decode, files_of, read_files, read_header, read_series
from preprocessing.dicomframe import Frame, frames_of
from preprocessing.images import Fault, as_fault
from preprocessing.pairfiles import Listing, PairFinder
from preprocessing.raw import RIGHTS, is_folder, reason, refuse_outside
from preprocessing.recipe import Found, Pixels, RawCase
from preprocessing.volumes import Scan, ValueRule

_ENDING = ".dcm"
_ON_GRID = 0.05  # of a voxel, by which a segmentation's planes may lie beside the volume's


def list_series(folder: Path, site: str) -> Listing:
    """What lies directly in a folder: each folder and each file is one case's; the disc's index is not. A pipe
    or a device is one case's too, and `files_of` makes it a fault: it is neither opened nor passed over in silence.

    Raises:
        DataError: the folder cannot be read.
    """
    found: dict[str, Path] = {}
    double: set[str] = set()
    linked: list[str] = []
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        for path in (path for path in paths if path.name.upper() != INDEX):
            within = is_folder(path)
            if within and path.is_symlink():
                linked.append(path.name)
                continue
            stem = path.name if within else _stem(path)
            if stem in found:
                double.add(stem)
            found[stem] = path
    except OSError as error:
        what = f"{folder.name}/ cannot be read: {reason(error)}"
        raise DataError(what, where=f"site {site}", do=RIGHTS) from error
    return Listing(found, double, linked, 0)


def _stem(path: Path) -> str:
    ending = path.name[-len(_ENDING) :]
    return path.name[: -len(_ENDING)] if ending.lower() == _ENDING else stem_of(path) or path.name


@dataclass(frozen=True)
class ByPatientId:
    """Cases of `find`, their patient being the PatientID of their files, of which only the keyed hash is written."""

    find: PairFinder

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`; a case whose files name no patient, or several, is a fault.

        Raises:
            DataError: as `PairFinder`.
        """
        found = self.find(raw, site)
        cases: dict[str, RawCase] = {}
        faults = list(found.faults)
        root = raw.resolve()
        for name, case in found.cases.items():
            try:
                cases[name] = RawCase(name, _patient_id(root, case.files["image"]), case.files)
            except Fault as fault:
                faults.append((name, str(fault)))
        return Found(cases, tuple(faults), found.ignored)


def _patient_id(root: Path, path: Path) -> str:
    refuse_outside(root, [path])  # before any of it is opened
    with as_fault("volume"):
        ids = {str(read_header(one, ["PatientID"]).get("PatientID") or "").strip() for one in files_of(path, "volume")}
    if len(ids) > 1:
        raise Fault("the files are of several patients")
    if ids == {""}:
        raise Fault("the files name no patient (PatientID), so whose they are is not known")
    return ids.pop()


@dataclass(frozen=True)
class ReadDicom:
    """Reads a series and its segmentation: DICOM SEG, or a NIfTI volume on the same grid.

    Segments may overlap where `labels` gives them one label value.
    """

    labels: ValueRule

    def __call__(self, files: Mapping[str, Path]) -> tuple[Scan, Scan]:
        """The volume "image", and the segmentation "label" on the volume's grid, stored values or segment numbers.

        Raises:
            Fault: either cannot be read, or the segmentation lies on another grid.
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
            raise Fault("the segmentation is DICOM, but no DICOM SEG; write it as SEG or as NIfTI")
        if file.get("SegmentationType") != "BINARY":
            raise Fault("the segmentation is fractional; write it as a binary SEG")
        if stack.reference and file.get("FrameOfReferenceUID") not in (None, "", stack.reference):
            raise Fault("volume and segmentation are of different frames of reference")
        frames, planes = frames_of([file]), decode(file)
        if planes.shape[1:] != scan.voxels.shape[:2]:
            raise Fault("volume and segmentation differ in the size of their slices")
        stored = np.zeros(scan.voxels.shape, dtype=np.uint8)
        same: dict[int, int] = {}
        for frame, plane in zip(frames, planes, strict=True):
            if plane.any():
                number, slice_ = _segment(file, frame.index), _slice(frame, scan, stack)
                value = int(self.labels.one(number))
                if value:
                    _draw(stored[:, :, slice_], plane > 0, same.setdefault(value, number))
        return Scan(stored, scan.affine)


def _segment(file: FileDataset, index: int) -> int:
    for group in (file.PerFrameFunctionalGroupsSequence[index], *file.get("SharedFunctionalGroupsSequence", [])[:1]):
        if "SegmentIdentificationSequence" in group:
            return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    raise Fault("a plane of the segmentation names no segment")


def _slice(frame: Frame, scan: Scan, stack: Stack) -> int:
    """Which slice of the volume a plane of its segmentation lies on: where the slice's file says that it lies, or
    where it lies on the volume's even grid. Positions in a series may be rounded, and then the two differ.
    """
    to_index, still = np.linalg.inv(scan.affine), np.zeros(3)
    rows, columns = np.subtract(scan.voxels.shape[:2], 1)
    # the plane's corners, in the volume's indices: only there would a small turn show
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
    there = into[mask]
    if ((there != 0) & (there != number)).any():
        raise Fault("segments of different label values overlap; let `values` give them one, or give one of them 0")
    into[mask] = number


def reoriented(scan: Scan, affine: NDArray[np.float64]) -> Scan:
    """A volume with its axes in the order and direction of another's, by the other's affine (4, 4): programs that
    write NIfTI from DICOM flip rows.
    """
    axes = io_orientation(np.linalg.inv(affine) @ scan.affine)
    if np.isnan(axes).any():
        return scan  # of no common axes: that their affines differ is told later
    turned = scan.affine @ inv_ornt_aff(axes, scan.voxels.shape)
    return Scan(apply_orientation(scan.voxels, axes), turned)
