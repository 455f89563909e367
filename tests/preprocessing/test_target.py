"""The output folder: other files are not deleted, stale slices are; formats and metadata."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fedfms.data import open_site
from fedfms.data.manifest import load_manifest, metadata
from fedfms.preprocessing.target import ending, write_if_changed
from fedfms.settings import SiteSettings
from fedfms.study import Study
from tests.preprocessing.make import CANARY, convert_pairs, main, make_raw


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
def test_a_folder_with_other_files_is_an_error(raw, out, capsys, name):
    """Including the manifest.json of a web application."""
    _put(out / "d" / "s" / name, b'{"version": 1}')
    before = _content(out.parent)
    assert convert_pairs(raw, out) == 1
    shown = "".join(capsys.readouterr())
    assert "site s: the output folder holds 1 files that no conversion wrote" in shown
    assert "smith" not in shown
    assert _content(out.parent) == before  # no key file either


@pytest.mark.parametrize("manifest", [True, False])
def test_other_files_next_to_a_conversion_are_not_deleted(raw, out, manifest):
    """With a manifest they remain; without a manifest they are an error."""
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


def test_stale_slices_and_temporary_files_are_removed(raw, out):
    convert_pairs(raw, out)
    target = out / "d" / "s"
    before = _content(target)
    for name in ("images/0123456789abcdef_0.png", "labels/.0123456789abcdef_0.png.a_b1.tmp", ".manifest.json.x.tmp"):
        _put(target / name)
    assert convert_pairs(raw, out) == 0
    assert _content(target) == before


@pytest.mark.parametrize("text", ["{", json.dumps({"version": 0, "dataset": "d", "site": "s", "cases": []})])
def test_a_damaged_or_older_manifest_is_replaced(raw, out, text):
    """Readers of such a manifest ask to convert the site again."""
    convert_pairs(raw, out)
    before = _content(out)
    (out / "d" / "s" / "manifest.json").write_text(text)
    assert convert_pairs(raw, out) == 0
    assert _content(out) == before


@pytest.mark.parametrize("how", ["empty", "no masks", "all damaged"])
def test_an_earlier_conversion_stays_if_nothing_can_be_converted(raw, out, capsys, how):
    convert_pairs(raw, out)
    before = _content(out)
    for kind in ("images", "labels") if how == "empty" else ("labels",):
        for path in (raw / kind).iterdir():
            path.write_bytes(b"damaged") if how == "all damaged" else path.unlink()
    capsys.readouterr()
    assert convert_pairs(raw, out) == 1
    assert "site s: nothing could be converted; the output is unchanged" in capsys.readouterr().out
    assert _content(out) == before


def test_an_empty_folder_gets_no_key_file(tmp_path, out):
    """It may be a share that is not mounted; a new key there would shadow the real one."""
    raw = make_raw(tmp_path / "raw", n=0)
    assert convert_pairs(raw, out) == 1
    assert _content(tmp_path) == {}
    assert not out.exists()
    shutil.rmtree(raw / "images")
    assert convert_pairs(raw, out) == 1


def test_a_slice_with_metadata_is_written_again(raw, out):
    convert_pairs(raw, out)
    before = _content(out)
    path = next((out / "d" / "s" / "labels").iterdir())
    info = PngInfo()
    info.add_text("PatientName", CANARY)
    Image.open(path).save(path, pnginfo=info)
    assert convert_pairs(raw, out) == 0
    assert _content(out) == before


@pytest.mark.parametrize(
    ("shape", "due"),
    [((5, 7, 3), ".webp"), ((5, 7), ".png"), ((2, 16383, 3), ".webp"), ((2, 16384, 3), ".png"),
     ((16384, 2, 3), ".png")],
)  # fmt: skip
def test_files_are_lossless_and_without_metadata(tmp_path, shape, due):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert ending(pixels) == due
    path = tmp_path / f"x{due}"
    write_if_changed(path, pixels)
    with Image.open(path) as opened:
        assert metadata(opened) == set()
        np.testing.assert_array_equal(np.asarray(opened), pixels)


def _png_only(monkeypatch):
    """Write PNG only, as an earlier version did."""
    monkeypatch.setattr("fedfms.preprocessing.onecase.ending", lambda _: ".png")


def test_the_split_does_not_depend_on_the_format(raw, out, tmp_path, monkeypatch):
    convert_pairs(raw, out)
    with monkeypatch.context() as patch:
        _png_only(patch)
        convert_pairs(raw, tmp_path / "before")
    new, old = (load_manifest(root / "d" / "s") for root in (out, tmp_path / "before"))
    assert new.splits == old.splits
    assert {Path(s.image).suffix for _, _, s in new.slices()} == {".webp"}
    assert {Path(s.image).suffix for _, _, s in old.slices()} == {".png"}
    assert [(s.image_sha256, s.label_sha256) for _, _, s in new.slices()] == [
        (s.image_sha256, s.label_sha256) for _, _, s in old.slices()
    ]
    study = Study.from_dict({"name": "t", "data": {"dataset": "d", "structures": [{"name": "a", "values": [1]}]}})
    one, two = (open_site(study, "s", SiteSettings(data_root=root)) for root in (out, tmp_path / "before"))
    assert one.counts() == two.counts()
    for part in one.parts:
        pairs = zip(one.dataset(part, input_px=16, mask_px=8), two.dataset(part, input_px=16, mask_px=8), strict=True)
        assert all((a["image"] == b["image"]).all() and (a["label"] == b["label"]).all() for a, b in pairs)


def test_an_older_conversion_is_valid_and_a_new_one_replaces_its_files(raw, out, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        _png_only(patch)
        convert_pairs(raw, out)
    assert main(["check", str(out)]) == 0
    assert convert_pairs(raw, out) == 0
    assert sorted({p.suffix for p in (out / "d" / "s" / "images").iterdir()}) == [".webp"]
    assert len(list((out / "d" / "s" / "images").iterdir())) == len(list((out / "d" / "s" / "labels").iterdir())) == 6
    assert main(["check", str(out)]) == 0


@pytest.mark.parametrize("how", ["exif", "icc_profile"])
def test_metadata_in_a_webp_is_reported_and_removed(raw, out, capsys, how):
    convert_pairs(raw, out)
    before = _content(out)
    path = next((out / "d" / "s" / "images").iterdir())
    exif = Image.Exif()
    exif[0x010E] = CANARY
    with Image.open(path) as opened:
        opened.load()
    opened.save(path, lossless=True, exact=True, **{how: exif.tobytes() if how == "exif" else CANARY.encode()})
    capsys.readouterr()
    assert main(["check", str(out)]) == 1
    assert "the image carries metadata" in capsys.readouterr().out
    assert convert_pairs(raw, out) == 0
    assert _content(out) == before


def test_a_file_of_another_format_is_not_opened(raw, out, capsys):
    """Even with the right pixels, because fewer decoders should read a file that somebody placed there."""
    convert_pairs(raw, out)
    path = next((out / "d" / "s" / "images").iterdir())
    with Image.open(path) as opened:
        opened.save(path, "TIFF")
    capsys.readouterr()
    assert main(["check", str(out)]) == 1
    assert "the image is damaged, or neither PNG nor WebP" in capsys.readouterr().out
