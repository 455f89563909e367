"""Reassembly of slices into their volume."""

import json
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.data.transforms import MasksOfStructuresd
from fedfms.data.volume import Volume, to_nifti
from fedfms.errors import DataError
from fedfms.schema import parse
from fedfms.study import Structure
from tests.data.make import native_masks

OBLIQUE = np.array([[0.6, 0.1, -0.3, 17], [-0.1, 0.625, 0.2, -11.3], [0.15, -0.1, 2.9, 4.1], [0, 0, 0, 1]])


def cut(label, axis, positions=None, affine=OBLIQUE):
    """The `Volume` and slices of a label volume."""
    positions = tuple(range(label.shape[axis])) if positions is None else positions
    volume = Volume(label.shape, tuple(affine.reshape(-1).tolist()), axis, positions)
    return volume, [np.take(label, position, axis) for position in positions]


def gland(shape=(384, 320, 20), seed=0):
    """A label (X, Y, Z): an irregular body of prostate size, a quarter of the width, with a smaller one in it."""
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    x, y, z = x[:, None, None] - 0.11, y[None, :, None] + 0.07, z[None, None, :]
    phase = np.random.default_rng(seed).uniform(0, 6, 2)
    bumps = 1 + 0.15 * np.sin(5 * np.arctan2(y, x) + phase[0]) + 0.1 * np.cos(3 * z + phase[1])
    distance = np.sqrt((x / 0.25) ** 2 + (y / 0.2) ** 2 + (z / 0.8) ** 2) / bumps
    return (distance < 1).astype(np.uint8) + (distance < 0.6)


def through_256(slice_, values):
    """A slice of label values, converted to masks of 256 x 256 (as by the loader) and back."""
    structures = [Structure(str(value), (value,)) for value in values]
    sample = {"label": torch.from_numpy(slice_)[None]}
    masks = MasksOfStructuresd(("label",), structures, 256)(sample)["label"]
    label = np.zeros_like(slice_)
    for value, mask in zip(values, native_masks(masks.numpy(), slice_.shape), strict=True):
        label[mask] = value
    return label


def dice(one, two):
    """Dice of two masks of any shape."""
    return 2 * (one & two).sum() / (one.sum() + two.sum())


@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 2), st.data())
def test_slices_return_to_their_positions(shape, axis, data):
    label = np.random.default_rng(0).integers(0, 4, shape, dtype=np.uint8)
    positions = tuple(sorted(data.draw(st.sets(st.integers(0, shape[axis] - 1), min_size=1))))
    image = to_nifti(*cut(label, axis, positions))
    back = np.asanyarray(image.dataobj)
    assert (back.shape, back.dtype) == (shape, np.uint8)
    for position in range(shape[axis]):
        expected = np.take(label, position, axis) if position in positions else 0
        np.testing.assert_array_equal(np.take(back, position, axis), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_reassembled_file_is_aligned_with_the_original(tmp_path, axis):
    """Through the manifest's JSON and a NIfTI file, as another program reads it."""
    label = gland((40, 30, 20))
    original = nib.Nifti1Image(label, OBLIQUE)
    nib.save(original, tmp_path / "original.nii.gz")
    original = nib.load(tmp_path / "original.nii.gz")
    volume, slices = cut(label, axis, affine=original.affine)
    volume = parse(Volume, json.loads(json.dumps(asdict(volume))), DataError)
    nib.save(to_nifti(volume, slices), tmp_path / "back.nii.gz")
    back = nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(back.affine, original.affine)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), label)
    assert back.get_data_dtype() == np.uint8
    assert back.header.get_zooms() == pytest.approx(original.header.get_zooms(), rel=1e-6)
    assert nib.aff2axcodes(back.affine) == nib.aff2axcodes(original.affine)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((384, 384, 20), 0.985), ((384, 320, 20), 0.985), ((256, 256, 6), 1), ((250, 311, 12), 0.985),
     ((512, 512, 8), 0.985), ((1024, 1024, 4), 0.98)],
)  # fmt: skip
def test_dice_through_256_px(shape, expected):
    """For the body and each of its parts."""
    label = gland(shape)
    volume, slices = cut(label, 2)
    back = np.asanyarray(to_nifti(volume, [through_256(slice_, (1, 2)) for slice_ in slices]).dataobj)
    assert dice(back > 0, label > 0) >= expected
    for value in (1, 2):
        assert dice(back == value, label == value) >= expected


def test_upsampling_to_256_px_and_back_is_exact():
    label = gland((35, 51, 35))
    volume, slices = cut(label, 2)
    back = to_nifti(volume, [through_256(slice_, (1, 2)) for slice_ in slices])
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), label)


def test_the_header_is_new():
    image = to_nifti(*cut(gland((8, 9, 5)), 2))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [image.header[field].item() for field in ("descrip", "aux_file", "db_name", "intent_name")] == [b""] * 4
    assert list(image.header.extensions) == []


def test_slices_that_do_not_fit_the_volume_are_rejected():
    volume, slices = cut(gland((8, 9, 5)), 2)
    for wrong in (
        slices[:-1],
        [*slices, slices[0]],
        [slices[0].T, *slices[1:]],
        [slices[0][None], *slices[1:]],
        [slices[0].astype(np.float32), *slices[1:]],
    ):
        with pytest.raises(DataError, match="volume to reassemble"):
            to_nifti(volume, wrong)
    with pytest.raises(DataError, match="outside the volume"):
        to_nifti(replace(volume, positions=(0, 1, 2, 3, 5)), slices)
