"""DICOM series: where planes lie, in any direction, what their stored values mean, and which files are opened."""

import os

import numpy as np
import pytest
from PIL import Image

from fedfms.data.manifest import load_manifest
from tests.preprocessing.make import CANARY, convert_pairs

pytest.importorskip("pydicom", reason="needs pydicom, the extra [dicom]")

from pydicom.uid import ImplicitVRLittleEndian  # noqa: E402

from fedfms.preprocessing import dicomfile  # noqa: E402
from fedfms.preprocessing.dicomfile import read_series  # noqa: E402
from fedfms.preprocessing.dicompairs import ReadDicom  # noqa: E402
from fedfms.preprocessing.images import Fault  # noqa: E402
from fedfms.preprocessing.volumes import ValueRule  # noqa: E402
from tests.preprocessing import dicom_layouts as make  # noqa: E402

OBLIQUE = [0.36, 0.48, -0.8, -0.8, 0.6, 0.0]  # at right angles to each other, along no axis
PLANES = {
    "sagittal": (make.COSINES, (0.0, 0.0, 0.0)),
    "oblique": (OBLIQUE, (0.0, 0.0, 0.0)),
    "tilted": ([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (0.0, 0.9, 0.0)),
    "oblique and tilted": (OBLIQUE, (0.36, 0.48, -0.8)),
}
VOXELS = ((0, 0, 0), (7, 9, 4), (3, 1, 2), (7, 0, 1), (0, 9, 3))


@pytest.fixture(params=PLANES)
def plane(request, monkeypatch):
    cosines, shear = PLANES[request.param]
    monkeypatch.setattr(make, "COSINES", cosines)
    monkeypatch.setattr(make, "SHEAR", shear)


@pytest.mark.usefixtures("plane")
def test_voxels_and_their_positions(tmp_path):
    scan, _ = read_series(make.series(tmp_path / "a"))
    assert (scan.voxels == make.stored() * 2.0 - 100).all()
    for voxel in VOXELS:
        assert np.allclose((scan.affine @ (*voxel, 1))[:3], make.lps(*voxel))
    many, _ = read_series(make.multi_frame(tmp_path / "b.dcm", make.stored()))
    assert (many.voxels == scan.voxels).all()
    assert np.allclose(many.affine, scan.affine)
    _, segmentation = _read(tmp_path / "a", make.seg(tmp_path / "c.dcm", make.masks()))
    assert (segmentation.voxels == make.truth()).all()


def _read(series, label):
    return ReadDicom(ValueRule({1: 1, 2: 2}))({"image": series, "label": label})


def test_each_slice_has_its_own_rescaling(tmp_path):
    slopes, intercepts = np.arange(1, 6) / 2, np.arange(5) * 10.0 - 7

    def of_file(one, index):
        one.RescaleSlope, one.RescaleIntercept = slopes[index], intercepts[index]

    def of_frames(one):
        for index, group in enumerate(one.PerFrameFunctionalGroupsSequence):
            group.PixelValueTransformationSequence = make.rescaled(slopes[index], intercepts[index])

    expected = make.stored() * slopes + intercepts
    assert (read_series(make.series(tmp_path / "a", change=of_file))[0].voxels == expected).all()
    assert (read_series(make.multi_frame(tmp_path / "b.dcm", make.stored(), of_frames))[0].voxels == expected).all()


@pytest.mark.parametrize("gap", [1.03, 1.05])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_segmentation_of_a_series_with_rounded_positions(tmp_path, monkeypatch, gap, own, shift):
    monkeypatch.setattr(make, "COSINES", [0.0, 1.0, 0.0, 0.0, 0.0, 1.0])  # its normal is x
    rounded = [round(index * gap, 1) for index in range(40)]
    even = np.linspace(rounded[0], rounded[-1], 40).round(6).tolist()

    def change(one, index):
        one.ImagePositionPatient = [rounded[index], 0.0, 0.0]

    folder = make.series(tmp_path / "a", make.stored(shape=(8, 10, 40)), change)
    mask = np.zeros((8, 10, 40), bool)
    mask[2:5, 3:7] = True

    def move(one):
        for index, group in enumerate(one.PerFrameFunctionalGroupsSequence):
            x = (rounded if own else even)[index]
            group.PlanePositionSequence[0].ImagePositionPatient = [round(x + shift, 6), 0.0, 0.0]

    label = make.seg(tmp_path / "b.dcm", {1: mask}, move)
    if shift:
        with pytest.raises(Fault, match="a plane is on no slice"):
            _read(folder, label)
    else:
        assert (_read(folder, label)[1].voxels == mask).all()


def _padded(value, limit=None, syntax=None):
    def change(one, index):
        voxels = make.stored()[:, :, index]
        voxels[:, :2] = value
        if limit is not None:
            voxels[:, 2] = (value + limit) // 2
            one.PixelPaddingRangeLimit = limit
        make.pixels(one, voxels)
        one.PixelPaddingValue = value
        if syntax:
            one.file_meta.TransferSyntaxUID = syntax

    return change


def _as_unsigned(one, index):
    """-2000 as many scanners write it: the VR of unsigned numbers."""
    _padded(-2000)(one, index)
    one.add_new("PixelPaddingValue", "US", 65536 - 2000)


@pytest.mark.parametrize("more", ["", "window: [0, 1000]\n"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("change", "first"), [
    (_padded(-32768), 2), (_padded(-2000), 2), (_padded(-2000, syntax=ImplicitVRLittleEndian), 2), (_as_unsigned, 2),
    (_padded(-3000, -1500), 3), (_padded(30000, 20000), 3),
])  # fmt: skip
def test_padding_is_black_and_does_not_affect_other_intensities(tmp_path, out, change, first, kind, more):
    def both(one, index):
        change(one, index)
        one.PhotometricInterpretation = kind

    make.series(tmp_path / "raw" / "images" / "a", change=both)
    make.seg(tmp_path / "raw" / "labels" / "a.dcm", make.masks())
    assert convert_pairs(tmp_path / "raw", out, *make.rule(tmp_path, more)) == 0
    tissue = make.stored()[:, first:] * 2.0 - 100
    low, high = (-500, 500) if more else (tissue.min(), np.percentile(tissue, 99))
    expected = np.rint((np.clip(tissue, low, high) - low) / (high - low) * 255)
    ((case),) = load_manifest(out / "d" / "s").cases
    for position, slice_ in enumerate(case.slices):
        image = np.asarray(Image.open(out / "d" / "s" / slice_.image))
        assert (image[:, :first] == 0).all()
        shown = expected[:, :, position]
        assert (image[:, first:] == (shown if kind == "MONOCHROME2" else 255 - shown)).all()


def test_padding_of_some_slices(tmp_path):
    def change(one, index):
        if index == 1:
            _padded(-2000)(one, index)

    scan, _ = read_series(make.series(tmp_path / "a", change=change))
    expected = np.zeros(make.SHAPE, bool)
    expected[:, :2, 1] = True
    assert (scan.padding == expected).all()
    assert read_series(make.series(tmp_path / "b"))[0].padding is None


def test_a_volume_of_padding_is_a_fault(tmp_path, out, capfd):
    def all_of_it(one, index):
        one.PixelPaddingValue, one.PixelPaddingRangeLimit = -32768, 32767

    for name, change in (("good", None), (CANARY, all_of_it)):
        make.series(tmp_path / "raw" / "images" / name, change=change)
        make.seg(tmp_path / "raw" / "labels" / f"{name}.dcm", make.masks())
    make.one_fault(tmp_path / "raw", out, capfd, "consists of padding only", make.rule(tmp_path))


@pytest.mark.parametrize("signed", [0, 1])
def test_twelve_stored_of_sixteen_bits(tmp_path, signed):
    voxels = make.stored() if signed else make.stored() + np.int16(1000)

    def twelve(one, index):
        make.pixels(one, voxels[:, :, index] & 0xFFF, signed=signed)  # what is above the highest bit means nothing
        one.BitsStored, one.HighBit = 12, 11

    scan, _ = read_series(make.series(tmp_path / "a", change=twelve))
    assert (scan.voxels == voxels * 2.0 - 100).all()


@pytest.mark.parametrize("patient", ["", "patient: dicom\n"])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_pipe_is_not_opened(tmp_path, out, capfd, part, within, patient):
    raw = tmp_path / "raw"
    for name in ("good", CANARY):
        if (part, within, name) != ("images", False, CANARY):
            make.series(raw / "images" / name)
        if (part, name) != ("labels", CANARY):
            make.seg(raw / "labels" / f"{name}.dcm", make.masks())
    folder = raw / part / CANARY if within else raw / part
    folder.mkdir(exist_ok=True)
    os.mkfifo(folder / f"{CANARY}.dcm")
    make.one_fault(raw, out, capfd, "neither a file nor a folder", make.rule(tmp_path, patient))


def test_headers_of_too_large_files_are_not_read(tmp_path, out, capfd, monkeypatch):
    raw = tmp_path / "raw"
    make.series(raw / "images" / "a")
    make.seg(raw / "labels" / "a.dcm", make.masks())
    monkeypatch.setattr(dicomfile, "MAX_BYTES", 1 << 11)
    monkeypatch.setattr(dicomfile, "read_file_meta_info", None)
    assert convert_pairs(raw, out, *make.rule(tmp_path, "patient: dicom\n")) == 1
    assert "more than 0 MB" in "".join(capfd.readouterr())
