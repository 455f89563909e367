"""The output folder: what is no conversion's own is neither deleted nor written beside."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.preprocessing.make import CANARY, convert_pairs, make_raw


def _content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["images/smith_0.png", "images/0123456789abcdef.png", "images/a.tmp", "0123456789abcdef_0.png", "notes.txt",
     "images/2024/0123456789abcdef_0.png", "manifest.json"],
)  # fmt: skip
def test_a_folder_of_something_else_is_refused(raw, out, capsys, name):
    """Also a web application's manifest.json is none of ours."""
    _put(out / "d" / "s" / name, b'{"version": 1}')
    before = _content(out.parent)
    assert convert_pairs(raw, out) == 1
    shown = "".join(capsys.readouterr())
    assert "site s: the output folder holds 1 files that no conversion made" in shown
    assert "smith" not in shown
    assert _content(out.parent) == before  # no key file either


@pytest.mark.parametrize("manifest", [True, False])
def test_files_of_others_beside_a_conversion_stay(raw, out, manifest):
    """With a manifest of ours they stay; without one they are a reason to refuse."""
    convert_pairs(raw, out)
    target = out / "d" / "s"
    for name in ("images/smith_0.png", "labels/.notes.tmp", "README"):
        _put(target / name)
    if not manifest:
        (target / "manifest.json").unlink()
    for kind, suffix in (("images", ""), ("labels", "_mask")):
        (raw / kind / f"{CANARY}5{suffix}.png").unlink()
    assert convert_pairs(raw, out) == (0 if manifest else 1)
    left = _content(target)
    assert {"images/smith_0.png", "labels/.notes.tmp", "README"} <= left.keys()
    assert len(left) == 3 + (1 + 2 * 5 if manifest else 2 * 6)


def test_our_own_leftovers_are_removed(raw, out):
    convert_pairs(raw, out)
    target = out / "d" / "s"
    before = _content(target)
    for name in ("images/0123456789abcdef_0.png", "labels/.0123456789abcdef_0.png.a_b1.tmp", ".manifest.json.x.tmp"):
        _put(target / name)
    assert convert_pairs(raw, out) == 0
    assert _content(target) == before


@pytest.mark.parametrize("text", ["{", json.dumps({"version": 0, "dataset": "d", "site": "s", "cases": []})])
def test_a_damaged_or_older_manifest_is_replaced(raw, out, text):
    """What reads a manifest says of such a one: convert again."""
    convert_pairs(raw, out)
    before = _content(out)
    (out / "d" / "s" / "manifest.json").write_text(text)
    assert convert_pairs(raw, out) == 0
    assert _content(out) == before


@pytest.mark.parametrize("how", ["empty", "no masks", "all damaged"])
def test_where_nothing_can_be_converted_an_earlier_conversion_stays(raw, out, capsys, how):
    convert_pairs(raw, out)
    before = _content(out)
    for kind in ("images", "labels") if how == "empty" else ("labels",):
        for path in (raw / kind).iterdir():
            path.write_bytes(b"damaged") if how == "all damaged" else path.unlink()
    capsys.readouterr()
    assert convert_pairs(raw, out) == 1
    assert "site s: nothing could be converted; the output is as it was" in capsys.readouterr().out
    assert _content(out) == before


def test_an_empty_folder_leaves_no_trace(tmp_path, out):
    """It may be where a share is not mounted: a new key there would hide behind the true one."""
    raw = make_raw(tmp_path / "raw", n=0)
    assert convert_pairs(raw, out) == 1
    assert _content(tmp_path) == {}
    assert not out.exists()
    shutil.rmtree(raw / "images")
    assert convert_pairs(raw, out) == 1


def test_a_slice_that_gained_metadata_is_written_again(raw, out):
    convert_pairs(raw, out)
    before = _content(out)
    path = next((out / "d" / "s" / "images").iterdir())
    info = PngInfo()
    info.add_text("PatientName", CANARY)
    Image.open(path).save(path, pnginfo=info)
    assert convert_pairs(raw, out) == 0
    assert _content(out) == before
