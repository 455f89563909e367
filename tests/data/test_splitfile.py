"""Files of splits: their content, what they do not reveal, and comparisons."""

import hashlib
import json
from dataclasses import replace

import pytest

from fedfms.cli import main
from fedfms.data.manifest import blank_sha256
from fedfms.data.site import open_site
from fedfms.data.source import Item
from fedfms.data.splitfile import (
    MIN_CASES,
    Part,
    SplitFile,
    _part,
    compare_splits,
    load_splits,
    make_splits,
    save_splits,
    to_text,
)
from fedfms.data.splits import PROTOCOLS
from fedfms.errors import DataError
from fedfms.preprocessing import fundus, hippocampus, nuclei, polyp
from fedfms.preprocessing.convert import convert_site
from fedfms.settings import SiteSettings
from fedfms.study import find_study, load_study
from tests.conftest import SHARED
from tests.data.make import make_site, make_study
from tests.preprocessing.make import copy_sites, options

COMMITTED = find_study("phantom").parent / "splits"
SEEDS = (0, 1, 2)


@pytest.fixture
def root(tmp_path):
    for site, n in (("a", 40), ("b", 10), ("c", 6)):
        make_site(tmp_path, site, n=n)
    return SiteSettings(data_root=tmp_path)


def _made(settings, **data):
    return make_splits(make_study(**data), settings, ["a", "b", "c"], list(PROTOCOLS), SEEDS)


def _edited(content: SplitFile, path, change) -> SplitFile:
    """The content after `change` of its JSON."""
    raw = json.loads(to_text(content))
    change(raw)
    path.write_text(json.dumps(raw))
    return load_splits(path)


def _all_parts(content: SplitFile) -> list[Part]:
    return [part for by_seed in content.splits.values() for by_site in by_seed.values()
            for parts in by_site.values() for part in parts.values()]  # fmt: skip


def test_the_file_holds_the_splits_of_a_run(root):
    study = make_study(held_out=["c"], max_images=30)
    made = make_splits(study, root, ["a", "c"], ["personal"], [1]).splits["personal"]["1"]
    run = replace(study, seed=1, data=replace(study.data, protocol="personal"))
    for site, parts in (("a", ("train", "test", "all")), ("c", ("all",))):
        data = open_site(run, site, root)
        assert tuple(made[site]) == parts
        for part in parts:
            keys = sorted(item.key for item in data.parts[part])
            digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
            assert made[site][part] == Part(patients=len(keys), slices=len(keys), sha256=digest)


def test_small_parts_have_numbers_and_no_digest(root):
    parts = _all_parts(_made(root))
    assert any(part.slices < MIN_CASES for part in parts)
    assert all((part.sha256 is None) == (part.slices < MIN_CASES) for part in parts)


def test_black_slices_do_not_count_towards_the_minimum_of_a_digest():
    keys = ["k1", "k2", "k3", "k4", *[blank_sha256(8, 8, 1)] * 9]
    items = [Item(f"c{k}", 0, "p", key, 8, 8, 1, (0,)) for k, key in enumerate(keys)]
    assert _part(items) == Part(patients=1, slices=13, sha256=None)


@pytest.mark.parametrize(("patients", "black", "digest"), [(1, 0, False), (4, 1, False), (4, 9, False), (5, 0, True)])
def test_a_digest_needs_several_patients(patients, black, digest):
    """For any number of slices: otherwise anyone with one patient's images could test whether the study has them."""
    items = [Item(f"c{k}", k, f"p{k % patients}", f"k{k}", 8, 8, 1, (0,)) for k in range(30)]
    items += [Item("b", k, f"b{k}", blank_sha256(8, 8, 1), 8, 8, 1, (0,)) for k in range(black)]
    assert (_part(items).sha256 is not None) == digest


def test_the_file_holds_no_id_and_no_pixel_hash(root, tmp_path):
    text = to_text(_made(root))
    manifest = json.loads((tmp_path / "eyes" / "a" / "manifest.json").read_text())
    for case in manifest["cases"]:
        slice_ = case["slices"][0]
        assert not any(secret in text for secret in (case["id"], slice_["image_sha256"], slice_["label_sha256"]))
    assert str(tmp_path) not in text


def test_the_same_images_with_other_ids_give_the_same_file(root, tmp_path):
    for site, n in (("a", 40), ("b", 10), ("c", 6)):
        make_site(tmp_path / "other", site, n=n, salt="z")
    assert _made(SiteSettings(data_root=tmp_path / "other")) == _made(root)


def test_a_comparison_has_one_line_per_difference(root, tmp_path):
    study, path = make_study(), tmp_path / "splits.json"
    save_splits(_made(root), path)
    assert compare_splits(study, root, load_splits(path)).differences == []

    def change(raw):
        site = raw["splits"]["personal"]["2"]["a"]
        site["train"]["sha256"] = "0" * 64
        site["test"]["slices"] += 1
        del site["all"]
        raw["rule"] = 1

    content = _edited(load_splits(path), tmp_path / "changed.json", change)
    lines = compare_splits(study, root, content).differences
    assert lines == [
        "rule: 2 here, 1 in the file",
        "personal, seed 2, site a, all: not in the file",
        "personal, seed 2, site a, test: 8 slices of 8 patients here, 9 slices of 8 patients in the file",
        "personal, seed 2, site a, train: the same number of slices, but other images",
    ]
    named = compare_splits(study, root, content, ["b", "x"]).differences
    assert named == [lines[0], "site x: the file does not name it"]
    assert compare_splits(study, root, content, seeds=[0, 1]).differences == lines[:1]
    assert compare_splits(study, root, content, protocols=["held-out"]).differences == lines[:1]
    other = compare_splits(study, SiteSettings(data_root=tmp_path / "eyes"), load_splits(path), ["a"]).differences
    assert [line.startswith("site a: there is no folder") for line in other] == [True]


def test_what_the_file_lacks_is_a_difference(root, tmp_path):
    content = make_splits(make_study(), root, ["a"], ["personal"], [0])
    assert compare_splits(make_study(), root, content, protocols=["held-out"], seeds=[0]).differences == [
        "held-out, seed 0, site a: the file does not name it"
    ]
    assert compare_splits(make_study(), root, content, seeds=[0, 5]).differences == [
        "personal, seed 5, site a: the file does not name it"
    ]
    without = _edited(content, tmp_path / "f.json", lambda raw: raw["splits"]["personal"].update({"1": {}}))
    assert compare_splits(make_study(), root, without).differences == [
        "personal, seed 1, site a: the file does not name it"
    ]


def test_a_comparison_notes_what_it_cannot_verify(root):
    study = replace(make_study(held_out=["e"]), sites=("a", "b", "d"))
    content = make_splits(study, root, ["a", "b"], ["personal"], [0], of="40 frames")
    found = compare_splits(study, root, content)
    assert found.notes == [
        "the file is of: '40 frames'",
        "the file does not name these sites of the study: d, e",
        "personal, site b, test: too few patients for a digest, only counts are compared (seeds 0)",
    ]
    assert found.differences == []
    assert compare_splits(study, root, content, ["a"]).notes == found.notes[:1]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}'])
def test_a_file_that_is_not_a_file_of_splits_is_rejected(tmp_path, text):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(DataError, match="^file of splits splits.json: "):
        load_splits(path)


SITE = {"a": {"all": {"patients": 6, "slices": 6, "sha256": None}}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 1}, "version: one of 2"),
        ({"of": None}, "of: expected str"),
        ({"more": 1}, "unknown key 'more'"),
        ({"splits": {"held-out": {"x": SITE}}}, "splits.held-out.x"),
        ({"splits": {"other": {"0": SITE}}}, "splits.other"),
        ({"splits": {"held-out": {"0": {"a": {"all": 1}}}}}, "splits.held-out.0.a.all: expected mapping"),
        ({"splits": {"held-out": {"00": SITE}}}, "splits.held-out.00"),
        ({"splits": {"held-out": {"\u0663": SITE}}}, "splits.held-out"),
        ({"splits": {}}, "names no site"),
        ({"splits": {"held-out": {"0": {}}}}, "names no site"),
    ],
)
def test_a_faulty_file_of_splits_is_rejected(tmp_path, root, change, says):
    made = make_splits(make_study(), root, ["a"], ["personal"], [0])
    with pytest.raises(DataError, match=f"^file of splits f.json: .*{says}.*name a file that"):
        _edited(made, tmp_path / "f.json", lambda raw: raw.update(change))


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file, arguments = tmp_path / "f.json", ["splits", "phantom", "--sites", "site-1", "--seeds", "0"]
    assert main([*arguments, "--of", "a phantom", "--out", str(file)]) == 0
    capsys.readouterr()
    assert main(["splits", "phantom", "--check", str(file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "the same splits"
    assert "the file is of: 'a phantom'" in shown
    assert main(["splits", "phantom", "--check", str(file), "--protocol", "personal", "--seeds", "0,7"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "personal, seed 7, site site-1: the file does not name it"
    assert main(["splits", "phantom", "--check", str(file), "--set", "data.phantom_images=20"]) == 1
    assert sum(" slices of " in line for line in capsys.readouterr().out.splitlines()) == 6
    assert main([*arguments, "--protocol", "personal"]) == 0
    assert list(json.loads(capsys.readouterr().out)["splits"]) == ["personal"]
    assert main(["splits", "phantom"]) == 1
    assert "--sites" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "no" / "f.json")]) == 1
    assert str(tmp_path) not in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_phantom_splits_are_up_to_date():
    """After an intended change of rule or phantom, run `fedfms splits phantom --out` and note it in CHANGELOG."""
    content = load_splits(COMMITTED / "phantom.json")
    assert {len(by_seed) for by_seed in content.splits.values()} == {len(SEEDS)}
    assert set(content.splits) == set(PROTOCOLS)
    assert compare_splits(load_study(find_study("phantom")), SiteSettings(), content).differences == []


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_file_names_its_images_and_has_no_digest_of_few_patients(path):
    content = load_splits(path)
    assert content.of
    assert all((part.sha256 is None) == (part.patients < MIN_CASES) for part in _all_parts(content))
    assert to_text(content) == path.read_text(encoding="utf-8")


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("module", "folder"), [(fundus, "fundus"), (nuclei, "nuclei"), (hippocampus, "hippocampus3d")])
def test_the_committed_splits_of_real_data(module, folder, tmp_path):
    content = load_splits(COMMITTED / f"{module.NAME}.json")
    _compare_converted(module, folder, tmp_path, content, sorted(content.splits["personal"]["0"]))


@pytest.mark.slow
@pytest.mark.shared
def test_the_committed_splits_of_polyps(tmp_path):
    """One site with small frames: all seven take minutes."""
    content = load_splits(COMMITTED / "polyp.json")
    _compare_converted(polyp, "polyp", tmp_path, content, ["cvc_clinicdb_barcelona_es"])


def _compare_converted(module, folder, tmp_path, content, sites):
    if not (SHARED / "data" / folder).is_dir():
        pytest.skip(f"needs shared/data/{folder} beside the checkout")
    raw, recipe = copy_sites(SHARED / "data" / folder, tmp_path / "raw", *sites), options(module)
    for site in sites:
        convert_site(raw, tmp_path / "out", site, recipe, workers=0)
    study = load_study(find_study(module.NAME))
    assert compare_splits(study, SiteSettings(data_root=tmp_path / "out"), content, sites).differences == []
