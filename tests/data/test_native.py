"""Small masks resized to native size: exact if they were not shrunk, otherwise with a Dice of at least 0.97."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.data.transforms import MasksOfStructuresd
from fedfms.study import Structure
from tests.data.make import native_masks

SMALL = 256


def shrink(mask, size_px=SMALL):
    """A mask (H, W) as the loader resizes it: float32 (1, size_px, size_px)."""
    sample = {"label": torch.from_numpy(mask.astype(np.uint8))[None]}
    return MasksOfStructuresd(("label",), [Structure("s", (1,))], size_px)(sample)["label"].numpy()


def ellipse(side, centre, radius, stretch, angle):
    """Mask (side, side) of an ellipse with the area of a disc of `radius`."""
    y, x = np.mgrid[:side, :side] + 0.5
    dy, dx = y - centre[0], x - centre[1]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return (u / (radius * stretch)) ** 2 + (v * stretch / radius) ** 2 < 1


def dice(one, two):
    return 2 * (one & two).sum() / (one.sum() + two.sum())


@pytest.mark.slow
@pytest.mark.parametrize(("side", "radius"), [(384, 15), (512, 15), (640, 24), (768, 28), (1024, 32)])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_dice_of_an_ellipse(side, radius, data):
    """At any position and angle, with axis ratios up to 1.56 : 1."""
    radius = data.draw(st.floats(radius, 3 * radius))
    centre = data.draw(st.tuples(*[st.floats(side * 0.3, side * 0.7)] * 2))
    mask = ellipse(side, centre, radius, data.draw(st.floats(0.8, 1.25)), data.draw(st.floats(0, 3.14)))
    assert dice(native_masks(shrink(mask), mask.shape)[0], mask) >= 0.97


@given(st.tuples(st.integers(1, 16), st.integers(1, 16)), st.integers(0, 2**32 - 1))
def test_masks_that_were_not_shrunk_are_restored_exactly(shape, seed):
    mask = np.random.default_rng(seed).random(shape) > 0.5
    np.testing.assert_array_equal(native_masks(shrink(mask, 16), shape)[0], mask)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("size", [(5, 700), (300, 512), (1024, 1024)])
def test_full_and_empty_masks_stay_so_up_to_the_edges(size, value):
    assert (native_masks(np.full((2, SMALL, SMALL), value, np.float32), size) == bool(value)).all()


@pytest.mark.parametrize("side", [384, 512, 768, 1024])
def test_masks_are_not_shifted(side):
    """On average over positions, a square's centre does not move; nearest-exact moves it by half a pixel at 512 px."""
    moved = []
    for start in range(side // 3, side // 3 + 12):
        mask = np.zeros((side, side), bool)
        mask[start : start + 60, start : start + 60] = True
        back = native_masks(shrink(mask), mask.shape)[0]
        moved.append([np.flatnonzero(back.any(axis=axis)).mean() - (start + 29.5) for axis in (0, 1)])
    assert np.abs(np.mean(moved, axis=0)).max() < 0.05


def test_probabilities_place_the_outline_between_pixels():
    """The outline of a ramp from 0 to 1 is where it is one half, with subpixel precision."""
    for at in (100.0, 100.3, 100.6):
        ramp = np.clip((np.arange(SMALL) - at) / 8 + 0.5, 0, 1)
        back = native_masks(np.broadcast_to(ramp, (1, SMALL, SMALL)).astype(np.float32), (1024, 1024))[0]
        first = np.flatnonzero(back[512])[0]
        assert abs((first - 2) / 4 - at) <= 0.26  # small pixel i is a sample at native 4 i + 2
