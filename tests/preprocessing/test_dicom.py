"""DICOM series: voxels, positions and segmentations are exact, and each defect is a fault of its case."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fedfms.data.manifest import load_manifest
from fedfms.data.volume import to_nifti
from tests.preprocessing.make import CANARY, convert_pairs, main

pytest.importorskip("pydicom", reason="needs pydicom, the extra [dicom]")

from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from fedfms.preprocessing import dicomfile  # noqa: E402
from fedfms.preprocessing.dicomfile import read_series  # noqa: E402
from fedfms.preprocessing.dicompairs import ReadDicom  # noqa: E402
from fedfms.preprocessing.images import Fault  # noqa: E402
from fedfms.preprocessing.volumes import ValueRule, eight_bits  # noqa: E402
from tests.preprocessing import dicom_layouts as make  # noqa: E402


def test_a_reassembled_label_volume_lies_where_the_series_does(tmp_path, out):
    make.series(tmp_path / "raw" / "images" / "case" / "study" / "series")
    (tmp_path / "raw" / "images" / "DICOMDIR").write_bytes(b"../../etc")
    (tmp_path / "raw" / "images" / "case" / "DICOMDIR").write_bytes(b"../../etc")
    make.seg(tmp_path / "raw" / "labels" / "case_seg" / "any.ending", make.masks())
    assert convert_pairs(tmp_path / "raw", out, *make.rule(tmp_path)) == 0
    assert main(["check", str(out)]) == 0
    (case,) = load_manifest(out / "d" / "s").cases
    assert case.volume is not None
    labels = [np.asarray(Image.open(out / "d" / "s" / slice_.label)) for slice_ in case.slices]
    image = to_nifti(case.volume, labels)
    assert (np.asarray(image.dataobj) == make.truth()).all()
    for voxel in np.argwhere(make.truth() == 2):
        assert np.allclose((image.affine @ (*voxel, 1))[:3], make.lps(*voxel))
    expected = eight_bits((make.stored() * 2.0 - 100).astype(np.float32))
    for position, slice_ in enumerate(case.slices):
        assert (np.asarray(Image.open(out / "d" / "s" / slice_.image)) == expected[:, :, position]).all()


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_nifti_segmentation_may_be_flipped_and_transposed(tmp_path, flip):
    folder = make.series(tmp_path / "a")
    affine = read_series(folder)[0].affine
    label, corner = make.truth()[:: flip[0], :: flip[1], :: flip[2]], np.array(make.SHAPE) - 1
    turn = np.diag([*flip, 1.0])
    turn[:3, 3] = np.where(np.array(flip) < 0, corner, 0)
    label, turn = np.transpose(label, (1, 0, 2)), turn[:, [1, 0, 2, 3]]
    nib.save(nib.Nifti1Image(label, affine @ turn), tmp_path / "a.nii.gz")
    read = ReadDicom(ValueRule({1: 1, 2: 2}))
    scan, segmentation = read({"image": folder, "label": tmp_path / "a.nii.gz"})
    assert (segmentation.voxels == make.truth()).all()
    assert np.allclose(segmentation.affine, scan.affine, atol=1e-4)


def test_monochrome1_is_inverted(tmp_path, out):
    def invert(one, index):
        one.PhotometricInterpretation = "MONOCHROME1"

    make.series(tmp_path / "raw" / "images" / "a", change=invert)
    make.seg(tmp_path / "raw" / "labels" / "a.dcm", make.masks())
    assert convert_pairs(tmp_path / "raw", out, *make.rule(tmp_path, "window: [0, 1000]\n")) == 0
    ((case),) = load_manifest(out / "d" / "s").cases
    values = make.stored()[:, :, 0] * 2.0 - 100
    expected = 255 - np.rint((np.clip(values, -500, 500) + 500) / 1000 * 255)
    assert (np.asarray(Image.open(out / "d" / "s" / case.slices[0].image)) == expected).all()
    assert load_manifest(out / "d" / "s").options["intensity"] == "window 0 1000"


def test_a_compressed_series(tmp_path):
    scan, _ = read_series(make.series(tmp_path / "a", change=lambda one, index: one.compress(RLELossless)))
    assert (scan.voxels == make.stored() * 2.0 - 100).all()


def _set(name, value, only=None):
    def change(one, index):
        if only is None or index == only:
            setattr(one, name, value)

    return change


def _other_series(one, index):
    one.SeriesInstanceUID = generate_uid()


def _smaller(one, index):
    if index == 2:
        make.pixels(one, make.stored()[1:, :, 2])


def _gap(one, index):
    one.ImagePositionPatient = make.place(index + (index > 2))


def _twice(one, index):
    one.ImagePositionPatient = make.place(min(index, 3))


def _without(*names):
    def change(one, index):
        for name in names:
            delattr(one, name)

    return change


def _syntax(uid):
    def change(one, index):
        one.file_meta.TransferSyntaxUID = uid
        if uid == JPEGLSLossless:
            from pydicom.encaps import encapsulate

            one.PixelData = encapsulate([one.PixelData])
            one["PixelData"].VR = "OB"

    return change


def _huge(one, index):
    one.Rows = one.Columns = 65535


def _many_frames(one, index):
    one.NumberOfFrames = 2**31 - 1


def _padding_of_many_bits(one, index):
    one.BitsStored, one.HighBit, one.PixelPaddingValue = 12, 11, -32768


SPOILED = {
    "several series": _other_series,
    "differ in size": _smaller,
    "missing or not evenly": _gap,
    "have one position": _twice,
    "differ in orientation": _set("ImageOrientationPatient", [1, 0, 0, 0, 1, 0], 0),
    "at right angles": _set("ImageOrientationPatient", [2, 0, 0, 0, 1, 0]),
    "pixel spacing": _set("PixelSpacing", [1, 1], 4),
    "not finite or not invertible": _set("PixelSpacing", [0, 0]),
    "has no position": _without("ImagePositionPatient"),
    "no pixel data": _without("PixelData"),
    "low values are bright": _set("PhotometricInterpretation", "MONOCHROME1", 1),
    "colours": _set("PhotometricInterpretation", "RGB"),
    "no decoder": _syntax(JPEGLSLossless),
    "deflated": _syntax(DeflatedExplicitVRLittleEndian),
    "more than 134217728 voxels": _huge,
    "134217728 voxels": _many_frames,
    "highest bit": _set("HighBit", 14),
    "more bits than": _padding_of_many_bits,
}


@pytest.mark.parametrize("text", SPOILED)
def test_a_defect_is_a_fault_of_its_case(tmp_path, out, capfd, text):
    raw = tmp_path / "raw"
    for name, change in (("good", None), (CANARY, SPOILED[text])):
        make.series(raw / "images" / name, change=change)
        make.seg(raw / "labels" / f"{name}.dcm", make.masks())
    make.one_fault(raw, out, capfd, text, make.rule(tmp_path))


def _overlap(path):
    both = make.masks()
    both[1][4:6] = both[2][4:6]
    make.seg(path, both)


def _shifted(one):
    for group in one.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x, y + 0.1, z]


def _above(one):
    one.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = make.place(9)


SEGMENTATIONS = {
    "overlap": _overlap,
    "on no slice": lambda path: make.seg(path, make.masks(), _shifted),
    "above or below": lambda path: make.seg(path, make.masks(), _above),
    "fractional": lambda path: make.seg(path, make.masks(), lambda one: setattr(one, "SegmentationType", "FRACTIONAL")),
    "frames of reference": lambda path: make.seg(
        path, make.masks(), lambda one: setattr(one, "FrameOfReferenceUID", generate_uid())
    ),
    "not a DICOM SEG": lambda path: make.seg(
        path, make.masks(), lambda one: setattr(one, "SOPClassUID", CTImageStorage)
    ),
    "values [3]": lambda path: make.seg(path, {**make.masks(), 3: make.masks()[1]}),
    "size of their slices": lambda path: make.seg(path, {n: mask[1:] for n, mask in make.masks().items()}),
    "segmentation's folder holds several": lambda path: make.series(path),
}


@pytest.mark.parametrize("text", SEGMENTATIONS)
def test_an_unsuitable_segmentation_is_a_fault(tmp_path, out, capfd, text):
    raw = tmp_path / "raw"
    for name in ("good", CANARY):
        make.series(raw / "images" / name)
    make.seg(raw / "labels" / "good.dcm", make.masks())
    SEGMENTATIONS[text](raw / "labels" / f"{CANARY}_mask")
    make.one_fault(raw, out, capfd, text, make.rule(tmp_path))


def test_segments_of_one_label_value_may_overlap(tmp_path):
    _overlap(tmp_path / "seg")
    files = {"image": make.series(tmp_path / "a"), "label": tmp_path / "seg"}
    _, segmentation = ReadDicom(ValueRule({1: 1, 2: 1}))(files)
    both = make.masks()
    assert ((segmentation.voxels > 0) == (both[1] | both[2])).all()


@pytest.mark.parametrize("left", [0, 1, 131, 300, 700, 0.5, 0.9, -1])
def test_a_truncated_file_is_a_fault(tmp_path, left):
    folder = make.series(tmp_path / "a")
    path = sorted(folder.iterdir())[2]
    contents = path.read_bytes()
    path.write_bytes(contents[: left if isinstance(left, int) else int(left * len(contents))])
    with pytest.raises(Fault) as caught:
        read_series(folder)
    assert CANARY not in str(caught.value)


def test_a_file_that_is_not_dicom_is_a_fault(tmp_path):
    folder = make.series(tmp_path / "a")
    (folder / f"{CANARY}.txt").write_text(CANARY)
    with pytest.raises(Fault, match="^one of its files is not a DICOM file$"):
        read_series(folder)


def test_too_large_files_are_not_read(tmp_path, monkeypatch):
    folder = make.series(tmp_path / "a")
    monkeypatch.setattr(dicomfile, "MAX_BYTES", 1 << 11)
    monkeypatch.setattr(dicomfile, "dcmread", None)
    with pytest.raises(Fault, match="more than 0 MB"):
        read_series(folder)
