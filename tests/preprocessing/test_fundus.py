"""The fundus data set: imitations of each published layout, and the real images if they are available."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fedfms.errors import DataError
from fedfms.preprocessing import fundus
from fedfms.preprocessing.images import Fault
from tests.conftest import SHARED
from tests.preprocessing.fundus_layouts import (
    HEIGHT,
    LAYOUTS,
    RIM_INVERTED,
    RIM_VALUES,
    WIDTH,
    drishti,
    mask,
    origa_mat,
    photo,
    stored,
    truth,
)
from tests.preprocessing.make import CANARY, as_sent, options

DATA = SHARED / "data" / "fundus"


recipe = partial(options, fundus)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_each_published_layout(tmp_path, layout):
    count = layout(tmp_path / "raw" / "SITE")
    chosen = as_sent(recipe())
    assert chosen.sites(tmp_path / "raw") == ["SITE"]
    found = chosen.find(tmp_path / "raw", "SITE")
    assert (len(found.cases), found.faults) == (count, ())
    for name, case in found.cases.items():
        assert (case.name, case.patient) == (name, name)
        ((image, label),) = chosen.read(case).slices
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image[..., 0].max() < WIDTH + 9  # the left view of two
        assert (label == truth()).all()
        assert image.dtype == label.dtype == np.uint8
        ((_, disc),) = recipe("--structures", "disc").read(case).slices
        assert (disc == (truth() > 0)).all()


def test_structures():
    assert [(s.name, s.value) for s in recipe().structures] == [("rim", 1), ("cup", 2)]
    disc = recipe("--structures", "disc")
    assert (disc.dataset, [(s.name, s.value) for s in disc.structures]) == ("fundus-disc", [("disc", 1)])
    assert recipe().dataset == fundus.NAME


@pytest.mark.parametrize(("experts", "agree"), [(1, {1, 2, 3, 4}), (2, {2, 3, 4}), (3, {3, 4}), (4, {4})])
def test_soft_maps_count_experts(tmp_path, experts, agree):
    """Releases round differently: 2 of 4 is stored as 127 or as 128."""
    site = tmp_path / "S"
    photo(site / "Images" / "a.png")
    soft = np.zeros((HEIGHT, WIDTH), np.uint8)
    values = {1: (63, 64), 2: (127, 128), 3: (191, 192), 4: (254, 255)}
    for number, (low, high) in values.items():
        soft[3 * number : 3 * number + 2, 4:14], soft[3 * number : 3 * number + 2, 14:24] = low, high
    mask(site / "GT" / "a" / "SoftMap" / "a_ODsegSoftmap.png", soft)
    mask(site / "GT" / "a" / "SoftMap" / "a_cupsegSoftmap.png", np.zeros_like(soft))
    chosen = recipe("--experts", str(experts))
    ((_, label),) = chosen.read(chosen.find(tmp_path, "S").cases["a"]).slices
    right = np.isin(soft, [value for number in agree for value in values[number]])
    assert (label == right).all()


def test_the_reference_code_counts_two_of_four(tmp_path):
    """It marks stored values of 100 or more."""
    levels = np.round(np.arange(5) / 4 * 255)
    assert ((levels >= 100) == (levels >= (2 - 0.5) / 4 * 255)).all()


def test_a_site_without_cup_is_an_error_or_converted_as_disc(tmp_path):
    photo(tmp_path / "S" / "images" / "IDRiD_01.jpg")
    (tmp_path / "S" / "labels").mkdir()
    image = Image.fromarray((truth() > 0).astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "S" / "labels" / "IDRiD_01_OD.tif")
    assert recipe().sites(tmp_path) == ["S"]
    with pytest.raises(DataError, match="cannot train or score the cup") as caught:
        recipe().find(tmp_path, "S")
    assert "--structures disc" in caught.value.line()
    disc = recipe("--structures", "disc")
    ((_, label),) = disc.read(disc.find(tmp_path, "S").cases["IDRiD_01"]).slices
    assert (label == (truth() > 0)).all()


def _pair(site, stored_mask):
    photo(site / "images" / f"{CANARY}.png")
    mask(site / "labels" / f"{CANARY}.png", stored_mask)
    return recipe().find(site.parent, site.name).cases[CANARY]


BAD_MASKS = {
    "inverted": (255 - stored(RIM_INVERTED), "values"),
    "0 background, 128 rim, 255 cup": (stored({0: 0, 1: 128, 2: 255}), "border"),
    "0/1/2 upside down": (stored({0: 2, 1: 1, 2: 0}), "border"),
    "no disc": (np.zeros((HEIGHT, WIDTH), np.uint8), "no disc"),
    "all background": (np.full((HEIGHT, WIDTH), 255, np.uint8), "no disc"),
    "other values": (stored({0: 0, 1: 100, 2: 200}), "values"),
    "another size": (stored(RIM_VALUES).T.copy(), "differ"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_impossible_masks_are_faults(tmp_path, case):
    array, message = BAD_MASKS[case]
    raw = _pair(tmp_path / "S", array)
    with pytest.raises(Fault, match=message) as caught:
        recipe().read(raw)
    assert CANARY not in str(caught.value)


def test_an_inverted_soft_map_is_a_fault(tmp_path):
    site = tmp_path / "S"
    photo(site / "Images" / "a.png")
    for kind in ("OD", "cup"):
        mask(site / "GT" / "a" / "SoftMap" / f"a_{kind}segSoftmap.png", (truth() == 0).astype(np.uint8) * 255)
    with pytest.raises(Fault, match="inverted"):
        recipe().read(recipe().find(tmp_path, "S").cases["a"])


def test_damaged_matlab_files_are_faults(tmp_path):
    origa_mat(tmp_path / "S")
    path = tmp_path / "S" / "Semi-automatic-annotations" / "001.mat"
    case = recipe().find(tmp_path, "S").cases["001"]
    for write in (
        lambda: path.write_bytes(b"broken"),
        lambda: savemat(path, {"other": truth()}),
        lambda: savemat(path, {"mask": np.array(["a", "b"], dtype=object)}),
    ):
        write()
        with pytest.raises(Fault, match="mask"):
            recipe().read(case)


def test_files_without_a_partner_are_faults(tmp_path):
    site = tmp_path / "S"
    drishti(site)
    photo(site / "Training" / "Images" / "b.png")
    mask(site / "Training" / "GT" / "c" / "SoftMap" / "c_cupsegSoftmap.png", truth())
    (site / "Test" / "Test_GT" / "drishtiGS_001" / "SoftMap" / "drishtiGS_001_cupsegSoftmap.png").unlink()
    photo(site / "Other" / "drishtiGS_002.jpg")
    faults = dict(recipe().find(tmp_path, "S").faults)
    assert faults == {
        "b": "the image has no mask",
        "c": "the mask has no image",
        "drishtiGS_001": "the image has no mask of the cup",
        "drishtiGS_002": "several files of this name",
    }
    assert "drishtiGS_001" in recipe("--structures", "disc").find(tmp_path, "S").cases


def test_masks_of_right_eyes_are_not_masks_of_the_disc(tmp_path):
    """`_OD` is the disc in IDRiD, and the right eye in all other data sets."""
    for eye in ("OD", "OS"):
        photo(tmp_path / "S" / "images" / f"17_{eye}.jpg")
        mask(tmp_path / "S" / "labels" / f"17_{eye}.png", stored(RIM_VALUES))
    found = recipe().find(tmp_path, "S")
    assert (sorted(found.cases), found.faults) == (["17_OD", "17_OS"], ())
    assert all((recipe().read(case).slices[0][1] == truth()).all() for case in found.cases.values())


def test_other_folders_are_not_sites(tmp_path):
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "photos" / "a.png")
    photo(tmp_path / ".fedfms-keys" / "images" / "a.png")
    drishti(tmp_path / "S")
    assert recipe().sites(tmp_path) == ["S"]


def _real(site):
    if not (DATA / site).is_dir():
        pytest.skip(f"needs shared/data/fundus/{site} next to the checkout")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("site", "count"), [("refuge_zeiss", 30), ("drishti_aravind_in", 30)])
def test_real_crops(site, count):
    _real(site)
    found = recipe().find(DATA, site)
    assert (len(found.cases), found.faults, found.ignored) == (count, (), 0)
    for case in found.cases.values():
        ((image, label),) = recipe().read(case).slices
        assert image.shape == (512, 512, 3)
        disc, cup = label > 0, label == 2
        assert 0.05 < disc.mean() < 0.7
        assert 0 < cup.sum() < disc.sum()
        assert image[cup].mean() > image[~disc].mean()  # the cup is the brightest part: nothing is inverted


@pytest.mark.slow
@pytest.mark.shared
def test_real_disc_only():
    _real("idrid_nanded_in_disc_only")
    chosen = recipe("--structures", "disc")
    found = chosen.find(DATA, "idrid_nanded_in_disc_only")
    assert (len(found.cases), found.faults) == (6, ())
    case = found.cases["IDRiD_01"]
    ((image, label),) = chosen.read(case).slices
    assert (image.shape, int(label.sum())) == ((2848, 4288, 3), 213851)
    assert image[label > 0].mean() > 1.5 * image[label == 0].mean()
    assert set(chosen.sites(DATA)) == {"idrid_nanded_in_disc_only", "refuge_zeiss", "drishti_aravind_in"}
