"""DICOM series and segmentations for tests, with the canary in every element that may hold a name."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs pydicom, the extra [dicom]")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import pack_bits  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    ExplicitVRLittleEndian,
    SegmentationStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from fedfms.data.manifest import load_manifest  # noqa: E402
from tests.preprocessing.make import CANARY, convert_pairs  # noqa: E402

SHAPE = (8, 10, 5)  # rows, columns, slices
ORIGIN = np.array([-30.0, 12.5, 100.0])
SPACING = (0.75, 0.5)  # of rows, of columns
STEP = 3.0
COSINES = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]  # a sagittal plane: columns run to the back, rows down
SHEAR = (0.0, 0.0, 0.0)  # mm, shift of a slice against the one before: a gantry's tilt
FOR = generate_uid()


def place(index, step=STEP):
    """The position of a slice in DICOM's mm."""
    return (ORIGIN + index * (step * np.cross(COSINES[:3], COSINES[3:]) + SHEAR)).tolist()


def lps(row, column, slice_):
    """The position of a voxel by DICOM's equation (PS3.3 C.7.6.2.1.1), in NIfTI's mm."""
    along_columns, along_rows = np.array(COSINES).reshape(2, 3)
    there = np.array(place(slice_)) + along_rows * SPACING[0] * row + along_columns * SPACING[1] * column
    return there * (-1, -1, 1)


def header(uid=CTImageStorage, patient=CANARY):
    """The elements of all files, with the canary in names, ids, texts and a private tag."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = uid
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid()
    one.PatientName, one.PatientID = f"{CANARY}^Max", patient
    one.StudyDescription = one.InstitutionName = one.SeriesDescription = CANARY
    one.private_block(0x0099, CANARY, create=True).add_new(0x01, "LO", CANARY)
    one.FrameOfReferenceUID = FOR
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    return one


def pixels(one, array, bits=16, signed=1):
    """Give a file its pixels, (H, W) or (frames, H, W)."""
    one.Rows, one.Columns = array.shape[-2:]
    one.BitsAllocated = one.BitsStored = bits
    one.HighBit, one.PixelRepresentation = bits - 1, signed
    one.PixelData = pack_bits(array.reshape(-1)) if bits == 1 else array.astype(f"<i{bits // 8}").tobytes()
    return one


def stored(seed=0, shape=SHAPE):
    """Stored voxels, int16."""
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def series(folder, voxels=None, change=None, patient=CANARY, names=None):
    """Write a series, with files not ordered by position; `change(file, index)` may make a defect."""
    voxels, uid = stored() if voxels is None else voxels, generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(voxels.shape[2]):
        one = pixels(header(patient=patient), voxels[:, :, index])
        one.SeriesInstanceUID = uid
        one.ImagePositionPatient, one.ImageOrientationPatient = place(index), COSINES
        one.PixelSpacing, one.RescaleSlope, one.RescaleIntercept = list(SPACING), 2, -100
        if change:
            change(one, index)
        one.save_as(folder / (names or f"{CANARY}{7 * index % 101}"), enforce_file_format=True)
    return folder


def groups(position, segment=None):
    """A plane's functional groups."""
    plane, one = Dataset(), Dataset()
    plane.ImagePositionPatient = position
    one.PlanePositionSequence = [plane]
    if segment is not None:
        which = Dataset()
        which.ReferencedSegmentNumber = segment
        one.SegmentIdentificationSequence = [which]
    return one


def rescaled(slope, intercept):
    """A functional group of rescaling."""
    scale = Dataset()
    scale.RescaleSlope, scale.RescaleIntercept = slope, intercept
    return [scale]


def shared():
    """Functional groups for all planes."""
    one, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = COSINES
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), STEP
    one.PlaneOrientationSequence, one.PixelMeasuresSequence = [orientation], [measures]
    return one


def multi_frame(path, voxels, change=None):
    """Write a multi-frame file with rescaling in functional groups; `change(file)` may make a defect."""
    one = pixels(header(UltrasoundMultiFrameImageStorage), np.moveaxis(voxels, 2, 0))
    one.NumberOfFrames, one.SeriesInstanceUID = voxels.shape[2], generate_uid()
    common = shared()
    common.PixelValueTransformationSequence = rescaled(2, -100)
    one.SharedFunctionalGroupsSequence = [common]
    one.PerFrameFunctionalGroupsSequence = [groups(place(index)) for index in range(voxels.shape[2])]
    if change:
        change(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def seg(path, masks, change=None):
    """Write a DICOM SEG of `masks`, booleans (rows, columns, slices) by segment number, without empty planes."""
    planes = [(n, k, mask[:, :, k]) for n, mask in masks.items() for k in range(mask.shape[2]) if mask[:, :, k].any()]
    one = pixels(header(SegmentationStorage), np.stack([plane for *_, plane in planes]).astype(np.uint8), 1, 0)
    one.NumberOfFrames, one.SegmentationType = len(planes), "BINARY"
    one.SharedFunctionalGroupsSequence = [shared()]
    one.PerFrameFunctionalGroupsSequence = [groups(place(k), n) for n, k, _ in planes]
    if change:
        change(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def masks():
    """Two segments side by side."""
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[1:4, 2:5, 1:3] = True
    two[4:7, 2:9, 2:4] = True
    return {1: one, 2: two}


def truth():
    """The label values of `masks`."""
    both = masks()
    return (both[1] + 2 * both[2]).astype(np.uint8)


RULE = "kind: dicom\nstructures: {one: 1, two: 2}\nvalues: {1: 1, 2: 2}\n"


def rule(tmp_path, more=""):
    """The option for a rule file."""
    path = tmp_path / "rule.yaml"
    path.write_text(RULE + more)
    return "--rule", str(path)


def one_fault(raw, out, capfd, text, rule):
    """Check that one of two cases has a fault, reported in one line without a name, and the other is converted."""
    assert convert_pairs(raw, out, *rule) == 1
    shown = "".join(capfd.readouterr())
    (line,) = [line for line in shown.splitlines() if ", case " in line]
    assert text in line
    assert CANARY not in shown
    assert str(raw) not in shown
    assert len(load_manifest(out / "d" / "s").cases) == 1
