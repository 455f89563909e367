"""The nuclei data set: imitations of each published layout, and the real images if they are available."""

from functools import partial

import numpy as np
import pytest

from fedfms.preprocessing import nuclei
from fedfms.preprocessing.images import Fault
from tests.conftest import SHARED
from tests.preprocessing.make import CANARY, as_sent, options
from tests.preprocessing.nuclei_layouts import (
    HEIGHT,
    LAYOUTS,
    ONE,
    TWO,
    WIDTH,
    dsb_sorted,
    mask,
    tile,
    truth,
    xml,
)
from tests.preprocessing.test_annotations import aperio

DATA = SHARED / "data" / "nuclei"


recipe = partial(options, nuclei)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_each_published_layout(tmp_path, layout):
    count, patients, ignored = layout(tmp_path / "raw" / "SITE")
    chosen = as_sent(recipe())
    assert chosen.sites(tmp_path / "raw") == ["SITE"]
    found = chosen.find(tmp_path / "raw", "SITE")
    assert (len(found.cases), found.faults, found.ignored) == (count, (), ignored)
    assert {case.patient for case in found.cases.values()} == patients
    for name, case in found.cases.items():
        assert case.name == name
        ((image, label),) = chosen.read(case).slices
        assert (label == truth()).all()
        assert (image.shape, image.dtype, label.dtype) == ((HEIGHT, WIDTH, 3), np.uint8, np.uint8)
        assert image[label > 0].max() < 100 < image[label == 0].min()


def test_ambiguous_outlines_are_background_by_default(tmp_path):
    tile(tmp_path / "S" / "x.tif")
    xml(tmp_path / "S" / "x.xml", aperio(("Epithelial", [(ONE, "")]), ("Ambiguous", [(TWO, "")])))
    for arguments, right in (((), 30), (("--ambiguous", "nucleus"), 30 + 96)):
        chosen = recipe(*arguments)
        ((_, label),) = chosen.read(chosen.find(tmp_path, "S").cases["x"]).slices
        assert label.sum() == right
        assert chosen.options["ambiguous"] == (arguments[1] if arguments else "background")


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("a/TCGA-18-5592-01Z-00-DX1.tif", "TCGA-18-5592"),
        ("a/tcga-18-5592-01z.tif", "TCGA-18-5592"),
        ("Slide_03/03_2.png", "slide 3"),
        ("a/03_2.png", "03_2"),
        ("a/xTCGA-18-5592.png", "xTCGA-18-5592"),
    ],
)
def test_patient_rule(tmp_path, path, right):
    assert nuclei.patient(tmp_path / path) == right


def test_files_without_a_partner_are_faults(tmp_path):
    site = tmp_path / "S"
    dsb_sorted(site)
    tile(site / "images" / "alone.png")
    xml(site / "labels" / "none.xml", aperio())
    xml(site / "labels" / "1cd.xml", aperio())
    tile(site / "images" / "0ab.tif")
    assert dict(recipe().find(tmp_path, "S").faults) == {
        "alone": "the image has no annotation",
        "none": "the annotation has no image",
        "1cd": "the image has annotations of several kinds",
        "0ab": "several files of this name",
    }


def test_faults_of_a_case_name_no_file(tmp_path):
    site = tmp_path / "S"
    for stem in ("size", "xml", "svs"):
        tile(site / "images" / f"{CANARY}{stem}.png")
    mask(site / "labels" / f"{CANARY}size.png", truth().T.copy())
    xml(site / "labels" / f"{CANARY}xml.xml", aperio((CANARY, [(ONE, "")]))[:-9])
    (site / "images" / f"{CANARY}svs.png").rename(site / "images" / f"{CANARY}svs.svs")  # a PNG is not a slide
    xml(site / "labels" / f"{CANARY}svs.xml", aperio())
    found = recipe().find(tmp_path, "S")
    messages = {"size": "differ", "xml": "annotation cannot be read", "svs": "write the SVS as TIF"}
    for stem, message in messages.items():
        with pytest.raises(Fault, match=message) as caught:
            recipe().read(found.cases[CANARY + stem])
        assert CANARY not in str(caught.value)


REAL = {  # cases, patients, measured share of nuclei
    "emory_gbm40": (10, 10, 0.254),
    "tcga_lgg": (10, 3, 0.208),
    "monuseg_tcga_multiorgan": (5, 5, 0.268),
    "dsb2018_stained_brightfield": (30, 30, 0.207),
}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("site", REAL)
def test_real_sites(site):
    if not (DATA / site).is_dir():
        pytest.skip(f"needs shared/data/nuclei/{site} next to the checkout")
    count, patients, share = REAL[site]
    found = recipe().find(DATA, site)
    assert (len(found.cases), found.faults, found.ignored) == (count, (), 0)
    assert len({case.patient for case in found.cases.values()}) == patients
    shares = []
    for case in found.cases.values():
        ((image, label),) = recipe().read(case).slices
        assert (image.ndim, image.shape[:2]) == (3, label.shape)
        assert image[label > 0].mean() < image[label == 0].mean()  # dark nuclei: no shift, no inversion
        shares.append(label.mean())
    assert np.mean(shares) == pytest.approx(share, abs=0.002)
    assert site in recipe().sites(DATA)
