"""The hippocampus: an imitation of the layout, and the real volumes of three strata if they are available."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedfms.data.volume import to_nifti
from fedfms.preprocessing import hippocampus
from fedfms.preprocessing.check import check_site
from fedfms.preprocessing.convert import convert_site
from fedfms.preprocessing.images import Fault
from tests.conftest import SHARED
from tests.data.test_volume import dice, through_256
from tests.preprocessing.make import copy_sites, options
from tests.preprocessing.volume_layouts import pair, scan, truth

DATA = SHARED / "data" / "hippocampus3d"
EDGES = SHARED / "data" / "_edge_cases"
CASES = 34  # per stratum, from SOURCES.md


@pytest.fixture
def real() -> Path:
    """The real volumes."""
    if not DATA.is_dir():
        pytest.skip("needs shared/data/hippocampus3d next to the checkout")
    return DATA


def test_the_help_says_one_hospital():
    about = " ".join((hippocampus.__doc__ or "").split())
    for text in (about, hippocampus.HELP):
        assert "one hospital in three strata of intensity scale, NOT three hospitals" in text
    assert [site for site in hippocampus.SITES if site not in about] == []


def test_an_imitation(tmp_path):
    shape = (7, 9, 11)
    label = truth(shape)
    label[0, 1, 2] = 2
    pair(tmp_path / "msd_uint8", "hippocampus_001", scan(shape, np.uint8, 253), label, affine=np.eye(4))
    recipe = options(hippocampus)
    assert (recipe.dataset, recipe.options) == ("hippocampus", {"depth": "coarsest"})
    assert recipe.sites(tmp_path) == ["msd_uint8"]
    (case,) = recipe.find(tmp_path, "msd_uint8").cases.values()
    done = recipe.read(case)
    assert (done.volume.axis, len(done.slices)) == (2, 11)
    np.testing.assert_array_equal(np.stack([values for _, values in done.slices], axis=2), label)
    pair(tmp_path / "msd_uint8", "hippocampus_001", scan(shape), label + 1, affine=np.eye(4))
    with pytest.raises(Fault, match=r"values \[3\]"):
        recipe.read(case)


def test_depth_is_an_option():
    assert options(hippocampus, "--depth", "third").read.depth == "third"
    with pytest.raises(SystemExit):
        options(hippocampus, "--depth", "first")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("site", hippocampus.SITES)
def test_every_real_volume(real, site):
    """Every volume is read and reassembled exactly, at its own size and after resizing to 256 x 256."""
    recipe = options(hippocampus)
    assert recipe.sites(real) == sorted(hippocampus.SITES)
    found = recipe.find(real, site)
    assert (len(found.cases), found.faults, found.ignored) == (CASES, (), 0)
    scores = []
    for case in found.cases.values():
        done = recipe.read(case)
        label = nib.load(case.files["label"])
        stored = np.asanyarray(label.dataobj)
        back = to_nifti(done.volume, [values for _, values in done.slices])
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), stored)
        np.testing.assert_array_equal(back.affine, label.affine)
        resized = to_nifti(done.volume, [through_256(values, (1, 2)) for _, values in done.slices])
        scores += [dice(np.asanyarray(resized.dataobj) == value, stored == value) for value in (1, 2)]
        pixels = np.stack([image for image, _ in done.slices])
        assert (pixels.min(), pixels.max()) == (0, 255)
        assert (pixels == 255).mean() < 0.02
    assert len(scores) == 2 * CASES
    assert min(scores) == 1


@pytest.mark.shared
@pytest.mark.slow
def test_conversion_of_the_real_strata(real, tmp_path):
    raw, out = copy_sites(real, tmp_path / "raw", *hippocampus.SITES), tmp_path / "out"
    recipe, slices = options(hippocampus), {}
    for site in recipe.sites(raw):
        done = convert_site(raw, out, site, recipe)
        assert (done.cases, done.patients, done.faults) == (CASES, CASES, ())
        assert check_site(out / "hippocampus" / site) == []
        slices[site] = done.slices
    assert slices == {"msd_uint8": 1255, "msd_float_lt1200": 1236, "msd_float_ge1200": 1180}


@pytest.mark.shared
def test_real_files_without_a_partner():
    if not EDGES.is_dir():
        pytest.skip("needs shared/data/_edge_cases next to the checkout")
    found = options(hippocampus).find(EDGES, "unpaired")
    assert found.cases == {}
    assert dict(found.faults) == {
        "hippocampus_118": "the volume has no segmentation",
        "hippocampus_010": "the segmentation has no volume",
        "hippocampus_281": "the segmentation has no volume",
    }
