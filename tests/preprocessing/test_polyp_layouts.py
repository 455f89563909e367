"""Published layouts of polyp data: imitations of each, faults in them, and ids that do not depend on the layout."""

import shutil

import pytest

from fedfms.data.manifest import load_manifest
from fedfms.errors import DataError
from fedfms.preprocessing import polyp
from tests.preprocessing.make import CANARY, as_sent, main, options
from tests.preprocessing.polyp_layouts import (
    LAYOUTS,
    clinicdb,
    colondb,
    etis,
    kvasir,
    own_layout,
    pair,
    polypgen,
    test_pack,
    truth,
)


def _found(raw):
    recipe = as_sent(options(polyp))
    return {site: recipe.find(raw, site) for site in recipe.sites(raw)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_each_layout(tmp_path, layout):
    expected = layout(tmp_path)
    found = _found(tmp_path)
    assert list(found) == sorted(expected)
    for site, pairs in found.items():
        cases = pairs.cases.values()
        assert (len(cases), len({case.patient for case in cases})) == expected[site]
        assert pairs.faults == ()
        for case in cases:
            ((image, label),) = polyp.recipe(None).read(case).slices
            assert image.shape == (*truth().shape, 3)
            assert (label == truth()).all()


def test_all_layouts_in_one_raw_folder(tmp_path):
    """One download each; one of them in an additional folder."""
    expected = {}
    for layout in (clinicdb, colondb, etis, polypgen):
        expected |= layout(tmp_path)
    expected |= kvasir(tmp_path / "kvasir-seg")
    found = _found(tmp_path)
    assert {site: len(pairs.cases) for site, pairs in found.items()} == {s: n for s, (n, _) in expected.items()}
    assert set(found) == {site for site in found if site in (polyp.__doc__ or "")}


def test_names_differ_in_capitals_and_blanks(tmp_path):
    etis(tmp_path)
    (tmp_path / "ETIS-LaribPolypDB" / "Ground Truth").rename(tmp_path / "ETIS-LaribPolypDB" / "groundtruth")
    (tmp_path / "ETIS-LaribPolypDB").rename(tmp_path / "etis")
    assert len(_found(tmp_path)["etis_lariboisiere_fr"].cases) == 4


@pytest.mark.parametrize("hidden", ["__MACOSX", ".trash"])
def test_hidden_folders_are_not_sites(tmp_path, hidden):
    kvasir(tmp_path / hidden)
    own_layout(tmp_path)
    assert "kvasir_seg_vestreviken_no" not in _found(tmp_path)


@pytest.mark.parametrize("second", [test_pack, own_layout])
def test_two_copies_of_a_site_are_an_error(tmp_path, second):
    (etis if second is test_pack else polypgen)(tmp_path)
    second(tmp_path)
    site = "etis_lariboisiere_fr" if second is test_pack else "polypgen_c1_paris_fr"
    recipe = options(polyp)
    assert recipe.sites(tmp_path).count(site) == 1
    with pytest.raises(DataError, match="2 times") as caught:
        recipe.find(tmp_path, site)
    assert site in caught.value.line()


@pytest.mark.parametrize("part", ["Original", "Ground Truth"])
def test_folders_that_differ_in_blanks_and_capitals_only_are_an_error(tmp_path, part):
    clinicdb(tmp_path)
    folder = tmp_path / "CVC-ClinicDB"
    shutil.copytree(folder / part, folder / f"{part.replace(' ', '')}_".upper())
    recipe = options(polyp)
    assert recipe.sites(tmp_path) == ["cvc_clinicdb_barcelona_es"]
    with pytest.raises(DataError, match="2 times"):
        recipe.find(tmp_path, "cvc_clinicdb_barcelona_es")


def test_files_without_a_partner_are_faults(tmp_path):
    etis(tmp_path)
    folder = tmp_path / "ETIS-LaribPolypDB"
    (folder / "ETIS-LaribPolypDB" / "1.tif").unlink()
    (folder / "Ground Truth" / "p14.tif").unlink()
    found = _found(tmp_path)["etis_lariboisiere_fr"]
    assert set(found.faults) == {("1", "the mask has no image"), ("14", "the image has no mask")}
    assert set(found.cases) == {"15", "196"}


@pytest.mark.parametrize(
    ("frames", "masks", "expected", "faulty"),
    [
        (["x_"], ["x_mask"], {"x_": "x_mask"}, set()),
        (["x", "x_"], ["x", "x_mask"], {"x": "x", "x_": "x_mask"}, set()),
        (["x", "x_"], ["x_mask", "x__mask"], {"x": "x_mask", "x_": "x__mask"}, set()),
        (["x", "x_"], ["x_mask"], {}, {"x", "x_"}),
        (["x"], ["xmask"], {}, {"x", "xmask"}),
        (["x"], ["x", "x_mask"], {}, {"x"}),
    ],
)
def test_no_two_frames_share_a_mask(tmp_path, frames, masks, expected, faulty):
    """Centre 3's odd pair, x_ and x_mask, alone and next to frames with similar names."""
    site = "polypgen_c3_aviano_it"
    for part, stems in (("images", frames), ("labels", masks)):
        (tmp_path / site / part).mkdir(parents=True)
        for stem in stems:
            (tmp_path / site / part / f"{stem}.jpg").touch()
    found = _found(tmp_path)[site]
    assert {stem: case.files["label"].stem for stem, case in found.cases.items()} == expected
    assert {stem for stem, _ in found.faults} == faulty


@pytest.mark.parametrize("stem", ["197", "0", CANARY])
def test_a_frame_without_a_known_run_is_a_fault(tmp_path, stem):
    etis(tmp_path)
    folder = tmp_path / "ETIS-LaribPolypDB"
    pair(folder / "ETIS-LaribPolypDB" / f"{stem}.tif", folder / "Ground Truth" / f"p{stem}.tif")
    ((_, fault),) = _found(tmp_path)["etis_lariboisiere_fr"].faults
    assert "patient rule" in fault


@pytest.mark.parametrize(("site", "frames", "runs"), [("cvc_colondb", 380, 10), ("etis", 196, 14)])
def test_runs_are_neighbours_and_have_one_length(site, frames, runs):
    patients = [polyp.patient(f"{site}_x", str(number)) for number in range(1, frames + 1)]
    assert len(set(patients)) == runs
    assert sum(a != b for a, b in zip(patients, patients[1:], strict=False)) == runs - 1
    assert {patients.count(one) for one in patients} == {frames // runs}


def test_a_closed_folder_stops_no_other_site(tmp_path, out, capsys, monkeypatch):
    raw = tmp_path / "raw"
    kvasir(raw)
    polypgen(raw)
    closed = raw / "PolypGen2021_MultiCenterData_v3" / "data_C3"
    real = type(closed).iterdir

    def look(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(type(closed), "iterdir", look)
    assert main(["polyp", "--raw", str(raw), "--out", str(out), "--workers", "0"]) == 1
    shown = capsys.readouterr().out
    assert "site PolypGen2021_MultiCenterData_v3: a folder in it cannot be read: Permission denied" in shown
    assert "data_C3" not in shown
    assert len(load_manifest(out / "polyp" / "kvasir_seg_vestreviken_no").cases) == 3


def test_ids_do_not_depend_on_the_layout(tmp_path, out, capsys):
    raw = tmp_path / "raw"
    clinicdb(raw)
    command = ["polyp", "--raw", str(raw), "--out", str(out), "--workers", "0"]
    site = "cvc_clinicdb_barcelona_es"
    assert main(command) == 0
    before = load_manifest(out / "polyp" / site)
    for old, new in (("Original", "images"), ("Ground Truth", "labels")):
        shutil.move(raw / "CVC-ClinicDB" / old, raw / site / new)
    assert main(command) == 0
    after = load_manifest(out / "polyp" / site)
    assert after.cases == before.cases
    capsys.readouterr()


def test_an_unknown_site_is_converted_with_a_note(tmp_path, out, capsys):
    raw = tmp_path / "raw"
    kvasir(raw)
    for index in range(5):
        pair(*(raw / "fundus_of_somebody" / folder / f"{index}.png" for folder in ("images", "labels")))
    assert main(["polyp", "--raw", str(raw), "--out", str(out), "--workers", "0"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("fundus_of_somebody: not a known site of this data set") == 1
