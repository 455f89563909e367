"""The embedded phantom: a function of seed and site, with a shift between sites."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedfms.data.phantom import make_phantom


@pytest.mark.parametrize("structures", [1, 2])
@pytest.mark.parametrize("kind", ["fundus", "mri"])
def test_deterministic_and_well_formed(structures, kind):
    one, two = (make_phantom(3, "x", n=9, size_px=40, structures=structures, kind=kind) for _ in range(2))
    assert (one.images == two.images).all()
    assert (one.labels == two.labels).all()
    assert one.images.shape == (9, 40, 40, 3)
    assert one.images.dtype == one.labels.dtype == np.uint8
    assert set(np.unique(one.labels)) == set(range(structures + 1))
    assert len(one.patients) == 9
    assert len(set(one.patients)) == 5


def test_seed_and_site_matter():
    one = make_phantom(0, "a", n=2, size_px=32).images
    assert (one != make_phantom(1, "a", n=2, size_px=32).images).any()
    assert (one != make_phantom(0, "b", n=2, size_px=32).images).any()


def test_a_few_images_are_empty():
    labels = make_phantom(0, "a", n=40, size_px=32).labels
    assert (labels.reshape(40, -1).max(axis=1) == 0).sum() == 2


def test_structures_are_brighter_but_a_threshold_does_not_do():
    phantom = make_phantom(0, "a", n=40)
    grey, truth = phantom.images.mean(axis=-1), phantom.labels > 0
    assert grey[truth].mean() > grey[~truth].mean() + 20
    best = max(2 * ((grey > t) & truth).sum() / ((grey > t).sum() + truth.sum()) for t in range(0, 255, 5))
    assert 0.3 < best < 0.9


def test_sites_look_different():
    means = [make_phantom(0, f"site-{i}", n=6, size_px=64).images.mean(axis=(0, 1, 2)) for i in range(1, 5)]
    gaps = [np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]]
    assert min(gaps) > 5


def test_under_a_strong_shift_some_sites_show_the_structures_dark():
    def difference(site: str, shift: str) -> float:
        phantom = make_phantom(0, site, n=6, size_px=64, shift=shift)
        grey, truth = phantom.images.mean(axis=-1), phantom.labels > 0
        return float(grey[truth].mean() - grey[~truth].mean())

    sites = [f"site-{i}" for i in range(1, 7)]
    assert all(difference(site, "look") > 0 for site in sites)
    assert {difference(site, "strong") > 0 for site in sites} == {True, False}


def test_a_strong_shift_moves_no_outline_and_no_image_of_the_other():
    one, other = make_phantom(0, "a", n=4, size_px=32), make_phantom(0, "a", n=4, size_px=32, shift="strong")
    assert (one.labels == other.labels).all()
    assert (one.images != other.images).any()


@pytest.mark.parametrize(
    ("site", "shift", "structures", "digest"),
    [("site-1", "look", 2, "560c3ce5faa49eb7"), ("site-2", "strong", 1, "ce3a0093bbf67eb6")],
)
def test_the_same_pixels_on_every_processor(site, shift, structures, digest):
    """Golden: splits hang on hashes of pixels, so that one grey level elsewhere is another split."""
    phantom = make_phantom(0, site, n=20, structures=structures, shift=shift)
    found = hashlib.sha256(phantom.images.tobytes() + phantom.labels.tobytes()).hexdigest()
    assert found[:16] == digest
