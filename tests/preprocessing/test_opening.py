"""Files that Pillow does not open: unusual TIFFs and arrays; alpha channels, and images that are not of 8 bits."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from fedfms.data.manifest import load_manifest
from fedfms.preprocessing.images import Fault, LabelRule, read_image, read_label
from tests.preprocessing.make import CANARY, convert_pairs

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (10, 14, 3), dtype=np.uint8)
GREY = COLOUR[..., 0].copy()
BY_VALUE = LabelRule(threshold=None, values={0: 0, 1: 1, 2: 2})


def _odd_tiff(path, array=COLOUR, **more):
    """A TIFF "MinIsBlack" with three samples, as in CVC-ClinicDB."""
    tifffile.imwrite(path, array, **{"photometric": "minisblack", "planarconfig": "contig", "metadata": None, **more})
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)
    return path


def test_a_tiff_that_pillow_does_not_open(tmp_path):
    assert (read_image(_odd_tiff(tmp_path / "a.TIF")) == COLOUR).all()


def test_planes_become_the_last_axis(tmp_path):
    path = _odd_tiff(tmp_path / "a.tiff", np.moveaxis(COLOUR, -1, 0), planarconfig="separate")
    assert (read_image(path) == COLOUR).all()


def test_the_orientation_of_a_tiff_is_applied(tmp_path):
    path = _odd_tiff(tmp_path / "a.tif", extratags=[(274, "H", 1, 6, True)])
    assert (read_image(path) == np.rot90(COLOUR, -1)).all()


def _refused(path, message, read=read_image):
    with pytest.raises(Fault, match=message) as caught:
        read(path)
    assert CANARY not in str(caught.value)


def test_a_truncated_tiff_is_a_fault(tmp_path):
    path = _odd_tiff(tmp_path / f"{CANARY}.tif")
    path.write_bytes(path.read_bytes()[:-50])
    _refused(path, "^the image cannot be read: damaged")


def test_unsupported_tiffs_are_faults(tmp_path):
    path = tmp_path / "a.tif"
    _refused(_odd_tiff(path, np.stack([COLOUR] * 2)), "several pages")
    _refused(_odd_tiff(path, COLOUR.astype(np.float64)), "of float64, not 8 bits")
    _refused(_odd_tiff(path, np.zeros((10, 14, 5), np.uint8)), r"shape \[10, 14, 5\]")
    path.write_bytes(b"II*\0damaged")
    _refused(path, "damaged")


@pytest.mark.parametrize("ending", ["tif", "npy"])
def test_the_number_of_pixels_is_limited(tmp_path, monkeypatch, ending):
    path = tmp_path / f"a.{ending}"
    _odd_tiff(path) if ending == "tif" else np.save(path, GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 139)
    _refused(path, "more than 139 pixels")


def test_a_header_that_declares_too_much_is_a_fault_before_reading(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 14, 1 << 14)})
    path = tmp_path / "a.npy"
    path.write_bytes(header.getvalue() + b"x" * 100)
    _refused(path, "damaged")
    with path.open("r+b") as file:
        file.truncate((1 << 28) + 1000)  # sparse, without use of disk space
    _refused(path, "more than [0-9]+ pixels")


@pytest.mark.parametrize(
    ("array", "due"),
    [(COLOUR, COLOUR), (GREY, GREY), (GREY[..., None], GREY), (np.dstack([COLOUR, GREY]), COLOUR),
     (np.asfortranarray(COLOUR), COLOUR), (GREY > 99, (GREY > 99) * np.uint8(255))],
)  # fmt: skip
def test_arrays_are_images(tmp_path, array, due):
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read_image(tmp_path / "a.npy"), due)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint16, ">i4"])
def test_arrays_are_masks(tmp_path, kind):
    mask = RANDOM.integers(0, 3, (10, 14)).astype(kind)
    np.save(tmp_path / "a.npy", mask)
    label = read_label(tmp_path / "a.npy", BY_VALUE)
    assert label.dtype == np.uint8
    assert np.array_equal(label, mask)


def test_boolean_arrays_are_masks(tmp_path):
    np.save(tmp_path / "a.npy", GREY > 99)
    assert np.array_equal(read_label(tmp_path / "a.npy", LabelRule()), GREY > 99)


@pytest.mark.parametrize(
    ("array", "message"),
    [(GREY.astype(np.float32), "float32, not 8 bits"), (GREY.astype(np.int64) - 300, "values from -"),
     (GREY.astype(np.uint16) + 256, "not within 0..255"), (np.zeros((0, 3), np.uint8), "shape"),
     (np.zeros((2, 3, 4, 5), np.uint8), "shape"), (np.zeros((2, 2), [(CANARY, "u1")]), "not 8 bits"),
     (np.array([[CANARY]], dtype=object), "damaged")],
)  # fmt: skip
def test_unsupported_arrays_are_faults(tmp_path, array, message):
    np.save(tmp_path / f"{CANARY}.npy", array, allow_pickle=True)
    _refused(tmp_path / f"{CANARY}.npy", message, lambda path: read_label(path, BY_VALUE))


def test_several_arrays_are_a_fault(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, GREY)
    _refused(tmp_path / "a.npy", "several arrays")


def test_wide_integers_are_not_an_image(tmp_path):
    """In a mask they are labels; in an image it is unknown which 8 bits to use."""
    np.save(tmp_path / "a.npy", GREY.astype(np.uint16))
    _refused(tmp_path / "a.npy", "uint16, not 8 bits")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_alpha_is_ignored(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.dstack([COLOUR, GREY])).save(path)
    assert (read_image(path) == COLOUR).all()


def test_arrays_and_odd_tiffs_in_pairs(raw, out):
    for number in (1, 2):
        (raw / "images" / f"{CANARY}{number}.png").unlink()
        (raw / "labels" / f"{CANARY}{number}_mask.png").unlink()
    np.save(raw / "images" / f"{CANARY}1.npy", COLOUR)
    np.save(raw / "labels" / f"{CANARY}1_mask.npy", GREY > 99)
    _odd_tiff(raw / "images" / f"{CANARY}2.tif")
    tifffile.imwrite(raw / "labels" / f"{CANARY}2.tif", (GREY > 99) * np.uint8(255))
    assert convert_pairs(raw, out) == 0
    assert len(load_manifest(out / "d" / "s").cases) == 6
