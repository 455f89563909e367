"""The embedded phantom: a function of seed, site and label values, with a shift between sites."""

import hashlib

import numpy as np
import pytest

from fedfms.data import open_site
from fedfms.data.phantom import make_phantom
from fedfms.settings import SiteSettings
from fedfms.study import Study


@pytest.mark.parametrize("values", [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4, 5), (1, 3, 7), (3, 7), (255,)])
@pytest.mark.parametrize("kind", ["fundus", "mri"])
def test_deterministic_and_well_formed(values, kind):
    one, two = (make_phantom(3, "x", n=9, size_px=40, values=values, kind=kind) for _ in range(2))
    assert (one.images == two.images).all()
    assert (one.labels == two.labels).all()
    assert one.images.shape == (9, 40, 40, 3)
    assert one.images.dtype == one.labels.dtype == np.uint8
    assert set(np.unique(one.labels)) == {0, *values}
    assert len(one.patients) == 9
    assert len(set(one.patients)) == 5


@pytest.mark.parametrize("values", [(1, 2, 3), (4, 2, 9, 1, 7)])
def test_every_image_shows_all_regions_or_none(values):
    labels = make_phantom(0, "a", n=40, size_px=64, values=values).labels
    shown = [set(np.unique(label).tolist()) for label in labels]
    assert shown.count({0}) == 2
    assert shown.count({0, *values}) == 38


def test_regions_are_nested_in_the_order_of_the_values():
    values = (4, 2, 9, 1, 7)
    labels = make_phantom(0, "a", n=6, values=values).labels
    for inner in range(1, len(values)):
        within = np.isin(labels, values[inner:])
        around = within.copy()
        for axis in (1, 2):
            around |= np.roll(within, 1, axis) | np.roll(within, -1, axis)
        assert set(np.unique(labels[around & ~within])) == {values[inner - 1]}


def test_label_values_do_not_change_the_images():
    one, other = (make_phantom(0, "a", n=4, size_px=32, values=values) for values in ((1, 2, 3), (9, 5, 200)))
    assert (one.images == other.images).all()
    assert (np.array([0, 9, 5, 200])[one.labels] == other.labels).all()


def test_seed_and_site_matter():
    one = make_phantom(0, "a", n=2, size_px=32).images
    assert (one != make_phantom(1, "a", n=2, size_px=32).images).any()
    assert (one != make_phantom(0, "b", n=2, size_px=32).images).any()


def test_a_few_images_are_empty():
    labels = make_phantom(0, "a", n=40, size_px=32).labels
    assert (labels.reshape(40, -1).max(axis=1) == 0).sum() == 2


def test_structures_are_brighter_but_a_threshold_is_not_enough():
    phantom = make_phantom(0, "a", n=40)
    grey, truth = phantom.images.mean(axis=-1), phantom.labels > 0
    assert grey[truth].mean() > grey[~truth].mean() + 20
    best = max(2 * ((grey > t) & truth).sum() / ((grey > t).sum() + truth.sum()) for t in range(0, 255, 5))
    assert 0.3 < best < 0.9


def test_neighbouring_regions_differ_in_brightness():
    phantom = make_phantom(0, "a", n=40, values=(1, 2, 3, 4))
    grey = phantom.images.mean(axis=-1)
    means = [grey[phantom.labels == value].mean() for value in (1, 2, 3, 4)]
    assert min(abs(a - b) for a, b in zip(means, means[1:], strict=False)) > 5


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


def test_a_strong_shift_changes_images_but_not_labels():
    one, other = make_phantom(0, "a", n=4, size_px=32), make_phantom(0, "a", n=4, size_px=32, shift="strong")
    assert (one.labels == other.labels).all()
    assert (one.images != other.images).any()


@pytest.mark.parametrize(
    ("site", "shift", "values", "kind", "n", "digest"),
    [
        ("site-1", "look", (1, 2), None, 20, "560c3ce5faa49eb7"),
        ("site-2", "strong", (1,), None, 20, "ce3a0093bbf67eb6"),
        ("site-1", "look", (1,), None, 20, "43fd0332d5e7d09a"),
        ("site-2", "strong", (1, 2), None, 20, "bd44c937355900e2"),
        ("b", "look", (1, 2), "mri", 7, "7d0c2d380cf9a22d"),
        ("b", "strong", (1,), "fundus", 7, "4f21eb782a5365d5"),
    ],
)
def test_golden_pixels_on_every_processor(site, shift, values, kind, n, digest):
    """Splits depend on hashes of pixels, so a single other grey level would give another split."""
    phantom = make_phantom(0, site, n=n, values=values, kind=kind, shift=shift)
    found = hashlib.sha256(phantom.images.tobytes() + phantom.labels.tobytes()).hexdigest()
    assert found[:16] == digest


def _study(*values: list[int]) -> Study:
    structures = [{"name": f"s{index}", "values": own} for index, own in enumerate(values)]
    return Study.from_dict({"name": "p", "data": {"structures": structures, "phantom_images": 20, "phantom_px": 64}})


@pytest.mark.parametrize(
    ("structures", "values", "digest"),
    [
        (([1],), (1,), "6202cb4a48663183"),
        (([1, 2], [2]), (1, 2), "aab767df7fc43e9c"),
        (([2],), (1, 2), "aab767df7fc43e9c"),  # value 1 is the rim around it
        (([1], [2], [3]), (1, 2, 3), None),
        (([1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5], [4, 5], [5]), (1, 2, 3, 4, 5), None),
        (([3], [7]), (1, 3, 7), None),
        (([3, 7], [7], [200], [9]), (1, 3, 7, 9, 200), None),
    ],
)
def test_a_study_gets_a_phantom_with_its_label_values(structures, values, digest):
    data = open_site(_study(*structures), "x", SiteSettings())
    assert {value for item in data.parts["all"] for value in item.values} == {0, *values}
    sample = data.dataset("all", input_px=64, mask_px=64)[0]
    assert sample["label"].shape == (len(structures), 64, 64)
    for structure in data.spec.structures:
        assert sum(item.has(structure) for item in data.parts["all"]) == 19  # one image of twenty is empty
    found = hashlib.sha256("".join(sorted(item.key for item in data.parts["all"])).encode()).hexdigest()[:16]
    assert digest is None or found == digest


def test_a_site_trains_and_scores_three_structures_of_any_values(tmp_path):
    from fedfms.training.site import Site

    raw = _study([3], [7], [9, 7]).to_dict()
    raw |= {"model": {"backbone": "vit_tiny", "input_px": 64}, "federation": {"min_cases": 1}}
    site = Site(Study.from_dict(raw), "x", SiteSettings(), tmp_path)
    result = site.train_round(0, site.built.shared())
    assert result.update.samples == 18
    images = {name: score["images"] - score["empty"] for name, score in result.scores["standard"].items()}
    assert images == {"s0": 2, "s1": 2, "s2": 2}
