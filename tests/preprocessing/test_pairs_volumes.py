"""`pairs` with NIfTI volumes, generated and real."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fedfms.data.manifest import load_manifest
from fedfms.data.volume import to_nifti
from fedfms.preprocessing.pairs import load_recipe
from fedfms.preprocessing.volumes import eight_bits
from tests.conftest import SHARED
from tests.preprocessing.make import CANARY, as_sent, convert_pairs, copy_sites, main
from tests.preprocessing.volume_layouts import AFFINE, put, scan, truth

RULE = "kind: volumes\nstructures: {one: 1, two: 2}\nvalues: {1: 1, 2: 2}\n"
DATA = SHARED / "data" / "hippocampus3d"


def _rule(tmp_path, text=RULE):
    path = tmp_path / "rule.yaml"
    path.write_text(text)
    return "--rule", str(path)


def _pair(raw, stem, suffix="_seg", label=None):
    put(raw / "images" / f"{stem}.nii.gz", scan())
    put(raw / "labels" / f"{stem}{suffix}.nii", truth(values=(1, 2)) if label is None else label)


def _back(out, case):
    """The label volume of a converted case."""
    assert case.volume is not None
    return to_nifti(case.volume, [np.asarray(Image.open(out / "d" / "s" / slice_.label)) for slice_ in case.slices])


def test_volumes_are_reassembled_at_their_position(tmp_path, out, capfd):
    raw = tmp_path / "raw"
    _pair(raw, f"{CANARY}1_a")
    _pair(raw, f"{CANARY}1_b", suffix="")
    _pair(raw, f"{CANARY}2_a", label=truth(values=(1, 9)))
    _pair(raw, f"{CANARY}3")
    more = f"patient: '^{CANARY}(.)_'\n"
    assert convert_pairs(raw, out, *_rule(tmp_path, RULE + more)) == 1
    assert main(["check", str(out)]) == 0
    shown = "".join(capfd.readouterr())
    assert "values [9] that the label rule does not name" in shown
    assert "patient rule does not match" in shown
    assert CANARY not in shown
    manifest = load_manifest(out / "d" / "s")
    assert (len(manifest.cases), len({case.patient for case in manifest.cases})) == (2, 1)
    assert manifest.options["intensity"] == "percentile"
    for case in manifest.cases:
        image = _back(out, case)
        assert (np.asarray(image.dataobj) == truth(values=(1, 2))).all()
        assert np.allclose(image.affine, AFFINE)
        expected = eight_bits(scan())
        for position, slice_ in enumerate(case.slices):
            assert (np.asarray(Image.open(out / "d" / "s" / slice_.image)) == expected[:, :, position]).all()


def test_a_window_and_how_a_volume_is_cut(tmp_path, out):
    raw = tmp_path / "raw"
    _pair(raw, "a")
    more = "window: [500, 200]\nneighbours: true\nempty_every: 4\n"
    assert convert_pairs(raw, out, *_rule(tmp_path, RULE + more)) == 0
    (case,) = load_manifest(out / "d" / "s").cases
    assert case.volume is not None
    assert case.volume.positions == (0, 2, 3, 4, 5, 8)
    expected = np.rint((np.clip(scan()[:, :, 1:4].astype(float), 400, 600) - 400) / 200 * 255)
    assert (np.asarray(Image.open(out / "d" / "s" / case.slices[1].image)) == expected).all()


def test_a_window_outside_of_all_values_is_a_fault(tmp_path, out, capsys):
    _pair(tmp_path / "raw", "a")
    assert convert_pairs(tmp_path / "raw", out, *_rule(tmp_path, RULE + "window: [-500, 100]\n")) == 1
    assert "one side of the window" in capsys.readouterr().out


@pytest.mark.parametrize("text", [RULE, ""])
def test_mixed_kinds_are_an_error(tmp_path, out, capsys, text):
    raw = tmp_path / "raw"
    _pair(raw, "a")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(raw / "images" / f"{CANARY}.png")
    assert convert_pairs(raw, out, *_rule(tmp_path, text)) == 1
    shown = "".join(capsys.readouterr())
    assert "images/ holds files of another kind than `kind` in the rule file" in shown
    assert CANARY not in shown


@pytest.mark.parametrize("text", [
    "kind: nifti", "kind: [volumes]", "kind: volumes\nthreshold: 3", "kind: volumes\nstructures: {a: 2}",
    "kind: images\nwindow: [1, 2]", RULE + "intensity: window", RULE + "intensity: percentile\nwindow: [1, 2]",
    RULE + "window: [1, 0]", RULE + "window: [.nan, 3]", RULE + "window: 40", RULE + "depth: first",
    RULE + "neighbours: 1", RULE + "empty_every: 0", RULE + "intensity: [1]", RULE + "patient: dicom",
    "kind: volumes\nvalues: {0: 1, 1: 1}", RULE + "mask_suffixes: ''", "kind: dicom\npalette_index: true",
])  # fmt: skip
def test_wrong_rules_are_one_line(tmp_path, out, capsys, text):
    (tmp_path / "raw").mkdir()
    assert convert_pairs(tmp_path / "raw", out, *_rule(tmp_path, text)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedfms: rule file: ")


def test_each_rule_in_the_help_is_valid(tmp_path):
    from fedfms.preprocessing import pairs

    blocks = [block for block in (pairs.__doc__ or "").split("\n\n") if block.startswith("  kind:")]
    assert len(blocks) == 3
    for block in blocks:
        path = tmp_path / "rule.yaml"
        path.write_text(block)
        if "dicom" in block:
            pytest.importorskip("pydicom", reason="needs pydicom, the extra [dicom]")
        recipe = as_sent(load_recipe("d", "s", path))
        assert len(recipe.structures) == 2


@pytest.mark.slow
@pytest.mark.shared
def test_real_volumes(tmp_path, out):
    site = "msd_uint8"
    if not DATA.is_dir():
        pytest.skip("needs shared/data/hippocampus3d next to the checkout")
    raw = copy_sites(DATA, tmp_path / "raw", site) / site
    assert convert_pairs(raw, out, *_rule(tmp_path)) == 0
    table = json.loads((raw / ".fedfms-keys" / "d-s.json").read_text())["links"]
    cases = load_manifest(out / "d" / "s").cases
    assert len(cases) == len(list((raw / "images").iterdir()))
    for case in cases[:3]:
        original = nib.load(raw / table[case.id]["label"])
        image = _back(out, case)
        assert (np.asarray(image.dataobj) == np.asarray(original.dataobj)).all()
        assert np.allclose(image.affine, original.affine)
