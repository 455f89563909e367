"""Reading a NIfTI file: supported files, and faults."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from fedfms.data import niftifile
from fedfms.data.niftifile import read_nifti
from tests.preprocessing.volume_layouts import AFFINE, READ, SHAPE, case_of, fault_of, made, put, scan, truth


def rewrite(path, change):
    """Change the unpacked bytes of a file."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def header(place, kind, *values):
    """A change of bytes: values at a position in the header."""
    size = struct.calcsize(kind)
    return lambda data: data[:place] + struct.pack(kind, *values) + data[place + size :]


def test_the_scale_factor_of_the_header_is_applied(tmp_path):
    case = made(tmp_path, scan(kind=np.int16), truth())
    image = nib.load(case.files["image"])
    image.header.set_slope_inter(0.5, -100)
    nib.save(nib.Nifti1Image(image.get_fdata() * 0.5 - 100, AFFINE, image.header), case.files["image"])
    array, _ = read_nifti(case.files["image"], "volume")
    assert array.min() == -100
    assert abs(array.max() - 400) < 1


def test_nifti2_and_an_unpacked_gz_are_read(tmp_path):
    image = put(tmp_path / "a.nii.gz", scan(), image_class=nib.Nifti2Image)
    label = put(tmp_path / "b.nii.gz", truth())
    label.write_bytes(gzip.decompress(label.read_bytes()))
    done = READ(case_of(image, label))
    np.testing.assert_array_equal(np.stack([values for _, values in done.slices], axis=-1), truth())


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_axes_of_length_one_are_dropped(tmp_path, shape):
    done = READ(made(tmp_path, scan(shape), truth()))
    assert done.volume.shape == SHAPE


def test_files_that_are_not_3d_volumes_are_faults(tmp_path):
    assert "4 axes (20 x 24 x 9 x 2), not 3" in fault_of(made(tmp_path, scan((*SHAPE, 2)), truth()))
    assert "2 axes (20 x 24), not 3" in fault_of(made(tmp_path, scan(SHAPE[:2]), truth()))
    colour = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert "colours or complex" in fault_of(made(tmp_path, colour, truth()))
    assert "colours or complex" in fault_of(made(tmp_path, scan().astype(np.complex64), truth()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["volume", "segmentation"])
def test_nan_voxels_are_a_fault(tmp_path, value, part):
    image, label = scan(), truth().astype(np.float32)
    (image if part == "volume" else label)[3, 4, 5] = value
    assert fault_of(made(tmp_path, image, label)) == f"the {part} has voxels that are NaN or infinite"


@pytest.mark.parametrize("keep", [0, 1, 40, 200, -8, -1])
def test_a_truncated_file_is_a_fault(tmp_path, keep):
    """Including the checksum at its end, which nibabel does not read."""
    case = made(tmp_path)
    path = case.files["image"]
    path.write_bytes(path.read_bytes()[:keep])
    text = fault_of(case)
    assert "cut short" in text or "not a NIfTI file" in text


def test_other_damage_is_a_fault(tmp_path):
    case = made(tmp_path)
    path = case.files["image"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # a wrong checksum
    assert "damaged" in fault_of(case)
    path.write_bytes(b"no volume" * 99)
    assert fault_of(case) == "the volume is not a NIfTI file"
    unpacked = gzip.decompress(whole)
    path.write_bytes(unpacked[:-100])
    assert "cut short" in fault_of(case)
    path.write_bytes(unpacked + bytes(1 << 21))
    assert fault_of(case) == "the volume has data after its last voxel"
    path.write_bytes(unpacked[:344] + b"ni1\0" + unpacked[348:])
    assert "header without voxels" in fault_of(case)
    path.unlink()
    assert fault_of(case) == "the volume is missing"


def test_a_header_that_declares_too_much_is_a_fault_before_reading(tmp_path, monkeypatch):
    case = made(tmp_path)
    path = case.files["image"]
    whole = path.read_bytes()
    monkeypatch.setattr(nib.Nifti1Image, "from_bytes", lambda _: pytest.fail("the voxels were read"))
    rewrite(path, header(40, "<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1))
    assert "32767 x 32767 x 32767 voxels, more than" in fault_of(case)
    path.write_bytes(whole)
    rewrite(path, header(108, "<f", 2.0**36))  # where the voxels begin; before it, extensions of any size
    assert "more than 1024 MB" in fault_of(case)
    path.write_bytes(whole)
    rewrite(path, header(108, "<f", float("nan")))
    assert "damaged" in fault_of(case)
    path.write_bytes(whole)
    rewrite(path, header(40, "<8h", 3, 20, 0, 9, 1, 1, 1, 1))
    assert "axis of length 0" in fault_of(case)
    path.write_bytes(whole)
    monkeypatch.setattr(niftifile, "MAX_BYTES", int(np.prod(SHAPE)) * 8 - 1)
    assert "more than" in fault_of(case)


def test_extra_bytes_are_not_unpacked(tmp_path):
    case = made(tmp_path)
    path = case.files["image"]
    packed = gzip.compress(gzip.decompress(path.read_bytes()) + bytes(200 << 20), compresslevel=1)
    path.write_bytes(packed)
    assert fault_of(case) == "the volume has data after its last voxel"


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0), (np.nan, 0, 0, 0)])
def test_a_singular_affine_is_a_fault(tmp_path, numbers):
    case = made(tmp_path)
    rewrite(case.files["image"], header(280, "<4f", *numbers))
    assert fault_of(case) == "the volume's affine is not finite or not invertible"
