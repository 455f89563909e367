"""Samples from a site's folder: parts, fidelity, augmentation, and every fault with site and case."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fedfms.data import open_site
from fedfms.errors import DataError, SettingsError
from fedfms.settings import SiteSettings
from fedfms.study import Study
from tests.data.make import make_site, make_study


@pytest.fixture
def root(tmp_path):
    make_site(tmp_path)
    return tmp_path


def _open(root, site="a", **data):
    return open_site(make_study(**data), site, SiteSettings(data_root=root))


def _read(folder, name):
    return np.asarray(Image.open(folder / name))


@pytest.mark.parametrize("grey", [False, True])
def test_native_size_is_exact_and_not_transposed(tmp_path, grey):
    """12 x 20 px images and labels are stretched to 60 x 60: 5 x in height, 3 x in width."""
    make_site(tmp_path, n=2, grey=grey)
    data = _open(tmp_path)
    for item, sample in zip(data.parts["all"], data.dataset("all", input_px=60, mask_px=60), strict=True):
        image, label = (_read(tmp_path / "eyes" / "a", name) for name in (item.image, item.label))
        expected = torch.tensor(label).repeat_interleave(5, 0).repeat_interleave(3, 1)
        assert torch.equal(sample["label"], torch.stack([expected > 0, expected == 2]).float())
        rgb = image[..., None].repeat(3, 2) if grey else image
        float_way = functional.interpolate(
            torch.tensor(rgb).permute(2, 0, 1)[None].float() / 255, (60, 60), mode="bilinear", antialias=True
        )[0]
        assert sample["image"].shape == (3, 60, 60)
        assert (sample["image"] - float_way).abs().max() < 1.01 / 255
        assert (sample["case"], sample["slice"], sample["key"]) == (item.case, 0, item.key)


def test_square_native_size_round_trips():
    study = Study.from_dict({"name": "p", "data": {"structures": [{"name": "disc", "values": [1, 2]}]}})
    data = open_site(study, "s", SiteSettings())
    item = data.parts["all"][0]
    image, label = data.source.read(item)
    sample = data.dataset("all", input_px=128, mask_px=128)[0]
    assert (sample["image"].numpy() == image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)).all()
    assert (sample["label"][0].numpy() == (label > 0)).all()


@pytest.mark.parametrize("size", [5, 8, 20, 33, 64])
def test_masks_are_nearest_exact(root, size):
    data = _open(root)
    label = _read(root / "eyes" / "a", data.parts["all"][0].label)
    masks = torch.from_numpy(np.stack([label > 0, label == 2]).astype(np.float32))
    expected = functional.interpolate(masks[None], (size, size), mode="nearest-exact")[0]
    assert torch.equal(data.dataset("all", input_px=8, mask_px=size)[0]["label"], expected)


@pytest.mark.parametrize(
    ("protocol", "held_out", "counts", "scored"),
    [
        ("held-out", [], {"train": 18, "val": 2, "all": 20}, "val"),
        ("personal", [], {"train": 16, "val": 4, "test": 4, "all": 20}, "test"),
        ("held-out", ["a"], {"train": 0, "val": 20, "all": 20}, "all"),
    ],
)
def test_parts(root, protocol, held_out, counts, scored):
    data = _open(root, protocol=protocol, held_out=held_out)
    assert data.counts() == counts
    assert data.scored_part == scored
    assert not {i.key for i in data.parts["train"]} & {i.key for i in data.parts[scored]}


def test_max_images_preserves_the_proportion(root):
    counts = _open(root, max_images=10, protocol="personal").counts()
    assert counts == {"train": 8, "val": 2, "test": 2, "all": 10}


def test_parts_depend_on_pixels_alone(tmp_path):
    """With other ids in another order of the manifest, the parts have the same images in the same order."""
    make_site(tmp_path / "one")
    make_site(tmp_path / "two", salt="other")
    one, two = (_open(tmp_path / name, max_images=15) for name in ("one", "two"))
    for part in ("train", "val"):
        assert [i.key for i in one.parts[part]] == [i.key for i in two.parts[part]]


def test_augmentation_depends_on_item_and_round_not_on_order(root):
    data = _open(root, augment="flip", crop_px=8)
    dataset = data.dataset("train", input_px=16, mask_px=16, augment=True, round_=1)
    forward = [dataset[i] for i in range(len(dataset))]
    backward = [dataset[i] for i in reversed(range(len(dataset)))][::-1]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(forward, backward, strict=True))
    later = data.dataset("train", input_px=16, mask_px=16, augment=True, round_=2)
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(forward, later, strict=True))
    assert {type(forward[0][key]) for key in ("image", "label")} == {torch.Tensor}


@pytest.mark.slow
def test_image_and_masks_are_flipped_together(tmp_path):
    study = Study.from_dict(
        {
            "name": "p",
            "data": {"structures": [{"name": "disc", "values": [1, 2]}], "augment": "flip", "crop_px": 90},
        }
    )
    data = open_site(study, "s", SiteSettings())
    for sample in data.dataset("train", input_px=90, mask_px=90, augment=True):
        mask = sample["label"][0] > 0
        if mask.sum() > 200:
            bright = sample["image"].mean(0)
            assert bright[mask].mean() > bright[~mask].mean()


def test_augmentation_is_off_by_default(root):
    plain, augmenting = _open(root), _open(root, augment="flip", crop_px=8)
    for a, b in zip(*(d.dataset("train", input_px=16, mask_px=16) for d in (plain, augmenting)), strict=True):
        assert torch.equal(a["image"], b["image"])


def test_a_warning_names_the_phantom_if_the_study_has_another_name(caplog):
    with caplog.at_level(logging.WARNING):
        data = open_site(Study.from_dict({"name": "phantom"}), "anything", SiteSettings())
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        open_site(Study.from_dict({"name": "polyp"}), "anything", SiteSettings())
    assert "the data set of study polyp is the embedded phantom" in caplog.text
    assert data.counts() == {"train": 50, "val": 6, "all": 56}
    assert sum(not item.has(data.spec.structures[0]) for item in data.parts["all"]) == 3


def test_a_phantom_site_can_be_held_out():
    study = Study.from_dict({"name": "phantom", "held_out": ["x"], "data": {"phantom_images": 6, "phantom_px": 32}})
    assert open_site(study, "x", SiteSettings()).counts() == {"train": 0, "val": 6, "all": 6}


def test_a_missing_data_root_is_an_error():
    with pytest.raises(SettingsError, match="site a: study eyes needs the data set 'eyes'.*fedfms_site.yaml"):
        open_site(make_study(), "a", SiteSettings())


def _edit(folder, change):
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def _save(folder, kind, pixels):
    Image.fromarray(pixels).save(folder / kind / "case00_0.png")


FAULTS = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "there is no manifest.json"),
    "no case": (lambda f: _edit(f, lambda raw: raw.update(cases=[])), "lists no case"),
    "other site": (lambda f: _edit(f, lambda raw: raw.update(site="b")), "another data set or site"),
    "no image": (
        lambda f: (f / "images/case00_0.png").unlink(),
        "case case00: the image of slice 0 is missing",
    ),
    "no label": (
        lambda f: (f / "labels/case00_0.png").unlink(),
        "case case00: the label of slice 0 is missing",
    ),
    "sizes": (lambda f: _save(f, "labels", np.zeros((20, 12), np.uint8)), "case00: the label .* 12 x 20 px"),
    "mode": (lambda f: _save(f, "images", np.zeros((12, 20), np.uint8)), "case00: the image .* 20 x 12 px L"),
    "no PNG": (lambda f: (f / "images/case00_0.png").write_bytes(b"x"), "case00: the image .* neither PNG nor WebP"),
    "truncated": (
        lambda f: (f / "images/case00_0.png").write_bytes((f / "images/case00_0.png").read_bytes()[:200]),
        "case00: the image of slice 0 is missing or damaged",
    ),
    "value": (lambda f: _save(f, "labels", np.full((12, 20), 7, np.uint8)), "case00: .* label values .7."),
    "pixels": (lambda f: _save(f, "images", np.zeros((12, 20, 3), np.uint8)), "case00: .* changed since"),
    "split": (
        lambda f: _edit(f, lambda raw: raw["splits"][0]["parts"].update(val=[])),
        "splits are not those",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("cache", [True, False])
def test_faults_name_site_and_case_but_no_path(root, fault, cache):
    break_it, message = FAULTS[fault]
    break_it(root / "eyes" / "a")
    with pytest.raises(DataError, match=message) as caught:
        list(_open(root, cache=cache).dataset("all", input_px=8, mask_px=8))
    line = str(caught.value)
    assert line.startswith("site a")
    assert line.count("site a:") + line.count("site a,") == 1
    assert "\n" not in line
    assert str(root) not in line


def test_a_data_root_that_does_not_exist(root):
    with pytest.raises(DataError, match="site b: the data root is not a folder; correct data_root") as caught:
        _open(root / "unmounted", site="b")
    assert "unmounted" not in str(caught.value)


def test_a_missing_folder_structure_or_part_is_an_error(root):
    with pytest.raises(DataError, match="site b: there is no folder eyes/b"):
        _open(root, site="b")
    with pytest.raises(DataError, match="'x' of study eyes has label values .5."):
        _open(root, structures=[{"name": "x", "values": [1, 5]}])
    with pytest.raises(DataError, match="no part 'test'"):
        _open(root).dataset("test", input_px=8, mask_px=8)
