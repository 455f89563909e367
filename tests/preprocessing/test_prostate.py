"""The prostate data set, on an imitation of the layout of the public collection."""

import numpy as np
import pytest

from fedfms.data.volume import to_nifti
from fedfms.preprocessing import prostate
from fedfms.preprocessing.images import Fault
from tests.preprocessing.make import CANARY, as_sent, options
from tests.preprocessing.volume_layouts import pair, put, scan, truth


def collection(raw, sites=prostate.SITES):
    """Two cases per site, with the suffix and the stored values of the site."""
    for site in sites:
        zones = site.startswith("ISBI")
        for number in range(2):
            suffix = "_Segmentation" if zones else "_segmentation"
            label = truth(values=(1, 2) if zones else (1,))
            put(raw / site / f"Case{number:02}.nii.gz", scan(seed=number))
            put(raw / site / f"Case{number:02}{suffix}.nii.gz", label.astype(np.float64 if site == "UCL" else np.uint8))
    return raw


def test_sites_of_the_collection(tmp_path):
    raw = collection(tmp_path)
    (raw / ".hidden").mkdir()
    (raw / "papers").mkdir()
    recipe = options(prostate)
    assert recipe.sites(raw) == sorted(prostate.SITES)
    assert [(one.name, one.value) for one in recipe.structures] == [("prostate", 1)]
    for site in prostate.SITES:
        found = recipe.find(raw, site)
        assert (sorted(found.cases), found.faults, found.ignored) == (["Case00", "Case01"], (), 0)
        assert {case.patient for case in found.cases.values()} == {"Case00", "Case01"}
        for case in found.cases.values():
            done = as_sent(recipe).read(case)
            assert len(done.slices) == 9
            back = to_nifti(done.volume, [values for _, values in done.slices])
            due = truth(values=(1, 2) if site.startswith("ISBI") else (1,)) > 0
            np.testing.assert_array_equal(np.asanyarray(back.dataobj), due)


def test_pairs_in_two_folders(tmp_path):
    pair(tmp_path / "BIDMC", "Case00")
    pair(tmp_path / "BIDMC", "Case01")
    found = options(prostate).find(tmp_path, "BIDMC")
    assert (sorted(found.cases), found.faults) == (["Case00", "Case01"], ())


def test_missing_files_are_faults(tmp_path):
    raw = collection(tmp_path)
    (raw / "HK" / "Case00.nii.gz").unlink()
    (raw / "HK" / "Case01_segmentation.nii.gz").unlink()
    assert dict(options(prostate).find(raw, "HK").faults) == {
        "Case00": "the segmentation has no volume",
        "Case01": "the volume has no segmentation",
    }


@pytest.mark.parametrize(
    ("label", "text"),
    [(truth() * 0, "shows no structure"), (scan(kind=np.uint8, top=255), "so it is an image"), (-scan(), "whole")],
)
def test_impossible_segmentations_are_faults(tmp_path, label, text):
    pair(tmp_path / "UCL", CANARY, label=label)
    (case,) = options(prostate).find(tmp_path, "UCL").cases.values()
    with pytest.raises(Fault, match=text) as caught:
        options(prostate).read(case)
    assert CANARY not in repr(caught.value)


def test_depth_is_an_option(tmp_path):
    turned = np.diag([3.0, 0.5, 0.5, 1])
    pair(tmp_path / "HK", "Case00", affine=turned)
    for arguments, axis in (((), 0), (("--depth", "third"), 2)):
        recipe = options(prostate, *arguments)
        (case,) = recipe.find(tmp_path, "HK").cases.values()
        assert recipe.read(case).volume.axis == axis
    assert recipe.options == {"depth": "third"}


def test_the_help_names_every_site():
    assert [site for site in prostate.SITES if site not in (prostate.__doc__ or "")] == []
