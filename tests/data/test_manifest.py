"""The data contract: manifests round-trip through JSON; impossible ones are rejected, with the case."""

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfms.data.manifest import (
    VERSION,
    Case,
    LabelClass,
    Manifest,
    Slice,
    Volume,
    load_manifest,
    make_splits,
    missing_files,
    parse_manifest,
    pixel_sha256,
    save_manifest,
)
from fedfms.errors import DataError
from tests.data.make import make_site

names = st.text("abcdef0123456789", min_size=1, max_size=8)


@st.composite
def cases(draw, id_):
    height, width, deep = (draw(st.integers(1, 5)) for _ in range(3))
    axis = draw(st.none() | st.integers(0, 2))
    positions = draw(st.lists(st.integers(0, deep - 1), unique=True, min_size=1, max_size=3).map(sorted))
    channels = draw(st.sampled_from([1, 3]))
    slices = tuple(
        Slice(f"images/{id_}_{k}.png", f"labels/{id_}_{k}.png", width, height, channels, f"{id_}{k}", f"{k}", (0, 1))
        for k in range(len(positions))
    )
    if axis is None:
        return Case(id_, draw(names), slices)
    lengths = [height, width]
    lengths.insert(axis, deep)
    affine = draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=16, max_size=16))
    return Case(id_, draw(names), slices, Volume(tuple(lengths), tuple(affine), axis, tuple(positions)))


@st.composite
def manifests(draw):
    listed = tuple(draw(cases(id_)) for id_ in draw(st.lists(names, unique=True, max_size=6)))
    options = draw(st.dictionaries(names, names, max_size=2))
    structures = (LabelClass("polyp", 1),)
    return Manifest(VERSION, draw(names), draw(names), structures, listed, make_splits(listed), options)


@pytest.mark.slow
@given(manifests())
def test_round_trip(manifest):
    assert parse_manifest(json.dumps(asdict(manifest))) == manifest


def test_round_trip_on_disk(tmp_path):
    manifest = make_site(tmp_path)
    folder = tmp_path / "eyes" / "a"
    assert load_manifest(folder) == manifest
    assert missing_files(manifest, folder) == []
    assert [p.name for p in folder.iterdir() if p.is_file()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 99, "version 99"),
        (("version",), 1, "version 1 is not 2; convert the site again"),
        (("options",), {"disc": 1}, "manifest.options.disc: expected str"),
        (("extra",), 1, "unknown key 'extra'"),
        (("cases", 0, "name"), "x", "unknown key 'name' in manifest.cases.0"),
        (("cases", 0, "slices", 0, "image"), "../other/x.png", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "label"), "/etc/hostname", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "label"), "", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "label"), "labels/..", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "label"), "C:x.png", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "label"), "labels\\x.png", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "width_px"), "20", "^manifest.cases.0.slices.0.width_px: expected int; convert"),
        (("cases", 0, "slices", 0, "width_px"), True, "^manifest.cases.0.slices.0.width_px: expected int; convert"),
        (("cases", 1, "slices", 0, "width_px"), 0, "^manifest.cases.1.slices.0.width_px: it must be above 0; convert"),
        (("cases", 0, "slices", 0, "channels"), 2, "^manifest.cases.0.slices.0.channels: one of 1, 3; convert"),
        (("cases", 0, "slices", 0, "values"), [0, 9], "case case00: .*values .9."),
        (("cases", 0, "slices"), [], "case case00: no slices"),
        (("cases", 0, "id"), "case01", "case id occurs twice"),
        (("structures", 0, "value"), 0, "structures.0.value: it must be 1 or more"),
        (("structures", 0, "value"), 256, "structures.0.value: it must be 255 at most"),
        (("splits",), {}, "manifest.splits: expected list"),
        (("splits", 0, "protocol"), "other", "manifest.splits.0.protocol: one of"),
    ],
)
def test_impossible_manifests_are_rejected(tmp_path, path, value, message):
    raw = json.loads(json.dumps(asdict(make_site(tmp_path, n=3))))
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError, match=message) as caught:
        parse_manifest(json.dumps(raw))
    assert "\n" not in str(caught.value)


def test_errors_show_no_value_of_the_file(tmp_path):
    raw = json.loads(json.dumps(asdict(make_site(tmp_path, n=3))))
    raw["cases"][0]["slices"][0]["width_px"] = "Jane Doe"
    with pytest.raises(DataError) as caught:
        parse_manifest(json.dumps(raw))
    assert "Jane" not in str(caught.value)


GOOD = {"shape": [12, 7, 20], "affine": [float(i) for i in range(16)], "axis": 1, "positions": [3]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [12, 7]}, "missing key 'manifest.cases.0.volume.shape.2'"),
        ({"shape": [12, 7, 20, 1]}, "manifest.cases.0.volume.shape: "),
        ({"shape": [12, 7, 0]}, "shape is not three numbers above 0"),
        ({"shape": [12, 7.0, 20]}, "volume.shape.1: expected int"),
        ({"shape": [7, 12, 20]}, "slice 0 does not have the size"),
        ({"shape": [20, 7, 12]}, "slice 0 does not have the size"),
        ({"affine": GOOD["affine"][:12]}, "12 numbers, not 16"),
        ({"affine": [float("nan"), *GOOD["affine"][1:]]}, "affine.0: it must be a finite number"),
        ({"affine": [float("inf"), *GOOD["affine"][1:]]}, "affine.0: it must be a finite number"),
        ({"affine": [10**400, *GOOD["affine"][1:]]}, "affine.0: it must be a finite number"),
        ({"affine": ["1", *GOOD["affine"][1:]]}, "affine.0: expected float"),
        ({"axis": 3}, "axis 3 is not"),
        ({"axis": -2}, "axis -2 is not"),
        ({"axis": True}, "axis: expected int"),
        ({"positions": [7]}, "outside the volume"),
        ({"positions": [-1]}, "outside the volume"),
        ({"positions": []}, "0 positions for 1 slices"),
        ({"positions": [2, 3]}, "2 positions for 1 slices"),
        ({"spacing": 1}, "unknown key 'spacing' in manifest.cases.0.volume"),
    ],
)
def test_impossible_volumes_are_rejected(tmp_path, change, message):
    raw = json.loads(json.dumps(asdict(make_site(tmp_path, n=3))))
    raw["cases"][0]["volume"] = GOOD
    assert parse_manifest(json.dumps(raw)).cases[0].volume == Volume((12, 7, 20), tuple(GOOD["affine"]), 1, (3,))
    raw["cases"][0]["volume"] = {**GOOD, **change}
    with pytest.raises(DataError, match="^(case case00: |.*manifest.cases.0.volume).*") as caught:
        parse_manifest(json.dumps(raw))
    assert message in str(caught.value)


@pytest.mark.parametrize("positions", [(3, 3), (4, 3)])
def test_positions_are_strictly_increasing(positions):
    volume = Volume((12, 7, 20), tuple(GOOD["affine"]), 1, positions)
    assert volume.fault([(12, 20)] * 2) == "the positions are not strictly increasing"


@pytest.mark.slow
def test_a_manifest_of_20000_slices_loads_fast(tmp_path):
    """The time is linear in the number of patients; it was quadratic, minutes for a large site."""
    cases = tuple(
        Case(
            f"c{i}", f"p{i}", (Slice(f"images/c{i}_0.png", f"labels/c{i}_0.png", 8, 8, 1, f"{i:x}", f"{i:x}", (0, 1)),)
        )
        for i in range(20_000)
    )
    save_manifest(Manifest(VERSION, "d", "s", (LabelClass("polyp", 1),), cases, make_splits(cases)), tmp_path)
    start = time.process_time()
    manifest = load_manifest(tmp_path)
    assert make_splits(manifest.cases) == manifest.splits
    assert time.process_time() - start < 3  # 0.3 s when written; 9 s before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "\x00"])
def test_other_files_are_rejected(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError):
        load_manifest(tmp_path)


def test_missing_files_are_reported_by_case(tmp_path):
    manifest = make_site(tmp_path, n=3)
    folder = tmp_path / "eyes" / "a"
    (folder / "labels" / "case01_0.png").unlink()
    assert missing_files(manifest, folder) == ["case case01: the label of slice 0 is missing"]


def test_a_link_out_of_the_folder_is_rejected(tmp_path):
    manifest = make_site(tmp_path, n=3)
    image = tmp_path / "eyes" / "a" / "images" / "case01_0.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="case01: .*outside"):
        missing_files(manifest, tmp_path / "eyes" / "a")


def test_the_hash_depends_on_the_shape():
    pixels = np.arange(12, dtype=np.uint8)
    assert pixel_sha256(pixels.reshape(3, 4)) != pixel_sha256(pixels.reshape(4, 3))
