"""The contract: what is written is what is read; what cannot be is refused, by case id."""

from __future__ import annotations

import json
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
    load_manifest,
    make_splits,
    missing_files,
    parse_manifest,
    pixel_sha256,
)
from fedfms.errors import DataError
from tests.data.make import make_site

names = st.text("abcdef0123456789", min_size=1, max_size=8)


@st.composite
def manifests(draw):
    ids = draw(st.lists(names, unique=True, max_size=6))
    cases = tuple(
        Case(
            id_,
            draw(names),
            (
                Slice(
                    f"images/{id_}.png",
                    f"labels/{id_}.png",
                    3,
                    4,
                    draw(st.sampled_from([1, 3])),
                    id_,
                    id_,
                    (0, 1),
                ),
            ),
        )
        for id_ in ids
    )
    return Manifest(VERSION, draw(names), draw(names), (LabelClass("polyp", 1),), cases, make_splits(cases))


@given(manifests())
def test_round_trip(manifest):
    assert parse_manifest(json.loads(json.dumps(asdict(manifest)))) == manifest


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
        (("extra",), 1, "unknown .'extra'"),
        (("cases", 0, "name"), "x", "unknown .'name'"),
        (("cases", 0, "slices", 0, "image"), "../other/x.png", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "label"), "/etc/hostname", "case case00: .*out of"),
        (("cases", 0, "slices", 0, "width_px"), "20", "case case00: expected int"),
        (("cases", 0, "slices", 0, "width_px"), True, "case case00: expected int"),
        (("cases", 0, "slices", 0, "values"), [0, 9], "case case00: .*values .9."),
        (("cases", 0, "slices"), [], "case case00: no slices"),
        (("cases", 0, "id"), "case01", "case id occurs twice"),
        (("structures", 0, "value"), 0, "not in 1..255"),
        (("splits",), {}, "expected list"),
    ],
)
def test_refused(tmp_path, path, value, message):
    raw = json.loads(json.dumps(asdict(make_site(tmp_path, n=3))))
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError, match=message) as caught:
        parse_manifest(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "\x00"])
def test_not_a_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError):
        load_manifest(tmp_path)


def test_files_are_named_by_case(tmp_path):
    manifest = make_site(tmp_path, n=3)
    folder = tmp_path / "eyes" / "a"
    (folder / "labels" / "case01_0.png").unlink()
    assert missing_files(manifest, folder) == ["case case01: the label of slice 0 is missing"]


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    manifest = make_site(tmp_path, n=3)
    image = tmp_path / "eyes" / "a" / "images" / "case01_0.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="case01: .*outside"):
        missing_files(manifest, tmp_path / "eyes" / "a")


def test_the_hash_knows_the_shape():
    pixels = np.arange(12, dtype=np.uint8)
    assert pixel_sha256(pixels.reshape(3, 4)) != pixel_sha256(pixels.reshape(4, 3))
