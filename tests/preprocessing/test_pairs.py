"""`pairs` on generated folders: converted pixels, faults, rule files, and no leak of names."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fedfms.data.manifest import load_manifest, metadata
from tests.preprocessing.faults import png
from tests.preprocessing.make import CANARY, convert_pairs, main, make_raw


def _manifest(out):
    return load_manifest(out / "d" / "s")


def _raw_name(kind, number):
    return f"{kind}/{CANARY}{number}{'_mask' if kind == 'labels' else ''}.png"


def test_pixels_are_unchanged(raw, out, capsys):
    assert convert_pairs(raw, out) == 0
    manifest = _manifest(out)
    assert len(manifest.cases) == 6
    table = json.loads((raw / ".fedfms-keys" / "d-s.json").read_text())["links"]
    for case, _, slice_ in manifest.slices():
        image, label = (np.asarray(Image.open(out / "d" / "s" / name)) for name in (slice_.image, slice_.label))
        files = table[case.id]
        assert (image == np.asarray(Image.open(raw / "images" / files["image"].removeprefix("images/")))).all()
        mask = np.asarray(Image.open(raw / "labels" / files["label"].removeprefix("labels/")))
        assert (label == (mask > 127)).all()
    assert sum(s.values == (0,) for _, _, s in manifest.slices()) == 1
    assert main(["check", str(out)]) == 0


def test_no_original_name_or_header_leaves(raw, out, capfd):
    (raw / "labels" / f"{CANARY}0_mask.png").unlink()
    (raw / "images" / f"{CANARY}1.png").write_bytes(b"broken")
    (raw / "images" / f"{CANARY}.dcm").write_bytes(b"x")
    assert convert_pairs(raw, out) == 1
    assert main(["check", str(out)]) == 0
    shown = "".join(capfd.readouterr())
    for path in out.rglob("*"):
        shown += str(path.relative_to(out))
        if path.is_file():
            shown += path.read_bytes().decode("latin-1")
        if path.parent.name in ("images", "labels"):
            assert not metadata(Image.open(path))
    assert CANARY not in shown
    assert str(raw) not in shown
    assert "1 files were ignored: this data set does not use files of their kind" in shown


def test_keys_stay_in_the_raw_folder_and_ids_are_stable(raw, out, tmp_path):
    convert_pairs(raw, out)
    first = _manifest(out)
    key = raw / ".fedfms-keys" / "d-s.json"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    assert not list(out.rglob("*keys*"))
    written = {p: p.stat().st_mtime_ns for p in out.rglob("*_0.*")}
    convert_pairs(raw, out)
    assert _manifest(out) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*_0.*")} == written  # not written again
    convert_pairs(raw, tmp_path / "elsewhere")
    assert _manifest(tmp_path / "elsewhere") == first


def test_read_only_raw_folder(raw, out, capsys):
    raw.chmod(0o555)
    try:
        assert convert_pairs(raw, out) == 0
        first = _manifest(out)
        assert "out.keys, next to the output" in capsys.readouterr().out
        key = out.parent / "out.keys" / "d-s.json"
        assert key.stat().st_mode & 0o777 == 0o600
        convert_pairs(raw, out)
        assert _manifest(out) == first
    finally:
        raw.chmod(0o755)
    convert_pairs(raw, out)
    assert _manifest(out) == first  # the key of the first run, although the raw folder is writable now


def test_two_machines_split_alike(raw, out, tmp_path):
    """Keys and ids differ; the same pixels are on the same sides."""
    shutil.copytree(raw, tmp_path / "raw2")
    convert_pairs(raw, out)
    convert_pairs(tmp_path / "raw2", tmp_path / "out2")
    one, two = _manifest(out), _manifest(tmp_path / "out2")
    assert not {case.id for case in one.cases} & {case.id for case in two.cases}

    def sides(manifest):
        content = {case.id: case.slices[0].image_sha256 for case in manifest.cases}
        return [{part: {content[id_] for id_ in ids} for part, ids in s.parts.items()} for s in manifest.splits]

    assert sides(one) == sides(two)


FAULTS = {  # that `test_conformance.py` does not cover
    "corrupt": ("images", b"not an image", "the image cannot be read"),
    "empty file": ("labels", b"", "the mask cannot be read"),
    "16 bits": ("images", png(np.zeros((10, 14), np.uint16)), "not 8 bits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_collected_and_the_rest_is_converted(raw, out, capsys, fault):
    kind, content, message = FAULTS[fault]
    path = raw / _raw_name(kind, 3)
    path.write_bytes(content)
    assert convert_pairs(raw, out) == 1
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if message in line]
    assert len(lines) == 1
    assert CANARY not in shown.out + shown.err
    case = lines[0].split("case ")[1].split(":")[0]
    assert json.loads((raw / ".fedfms-keys" / "d-s.json").read_text())["links"][case]["name"] == f"{CANARY}3"
    assert len(_manifest(out).cases) == 5
    assert main(["check", str(out)]) == 0


def test_several_files_of_one_name_are_faults(raw, out, capsys):
    shutil.copy(raw / _raw_name("images", 2), raw / "images" / f"{CANARY}2.tif")
    shutil.copy(raw / _raw_name("labels", 4), raw / "labels" / f"{CANARY}4.png")
    assert convert_pairs(raw, out) == 1
    shown = capsys.readouterr().out
    assert "several files of this name" in shown
    assert "the image has several masks" in shown
    assert len(_manifest(out).cases) == 4


def test_a_mask_that_matches_two_images_is_a_fault_of_both(raw, out, capsys):
    shutil.copy(raw / _raw_name("images", 2), raw / "images" / f"{CANARY}2_mask.png")
    assert convert_pairs(raw, out) == 1
    assert capsys.readouterr().out.count("the image's mask also matches another image") == 2
    assert len(_manifest(out).cases) == 5


def test_nothing_to_convert(tmp_path, out, capsys):
    raw = make_raw(tmp_path / "empty", n=0)
    assert convert_pairs(raw, out) == 1
    assert "site s: nothing could be converted" in capsys.readouterr().out
    assert not list(out.rglob("manifest.json"))


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_conversion_has_no_manifest_or_a_valid_one(raw, out, monkeypatch, changed):
    import fedfms.preprocessing.convert as convert

    convert_pairs(raw, out)
    first = _manifest(out)
    path = raw / _raw_name("images", 3)
    content = path.read_bytes()
    if changed:
        path.write_bytes(png(np.zeros((10, 14, 3), np.uint8)))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "save_manifest", stop)
        assert convert_pairs(raw, out) == 130
    assert (out / "d" / "s" / "manifest.json").exists() is not changed
    assert main(["check", str(out)]) == int(changed)
    path.write_bytes(content)
    cut = next((out / "d" / "s" / "images").glob("*.webp"))
    cut.write_bytes(cut.read_bytes()[:40])
    cut.with_name(f".{cut.name}.x.tmp").write_bytes(b"left by a killed process")
    assert convert_pairs(raw, out) == 0
    assert _manifest(out) == first
    assert main(["check", str(out)]) == 0


def test_a_withdrawn_image_is_removed(raw, out):
    convert_pairs(raw, out)
    for kind in ("images", "labels"):
        (raw / _raw_name(kind, 5)).unlink()
    assert convert_pairs(raw, out) == 0
    assert len(list(out.rglob("*_0.*"))) == 2 * len(_manifest(out).cases) == 10


def test_exif_orientation_is_applied(raw, out):
    pixels = np.zeros((10, 14, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to be upright
    (raw / _raw_name("images", 1)).unlink()
    Image.fromarray(pixels).save(raw / "images" / f"{CANARY}1.jpg", exif=exif, quality=100)
    Image.fromarray(np.full((14, 10), 255, np.uint8)).save(raw / _raw_name("labels", 1))
    assert convert_pairs(raw, out) == 0
    upright = [s for _, _, s in _manifest(out).slices() if (s.width_px, s.height_px) == (10, 14)]
    image = np.asarray(Image.open(out / "d" / "s" / upright[0].image))
    assert image[:3].mean() > 240
    assert image[6:].mean() < 15
    assert not metadata(Image.open(out / "d" / "s" / upright[0].image))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_masks_of_every_mode(raw, out, mode):
    mask = Image.open(raw / _raw_name("labels", 2)).convert("L")
    stored = mask.convert("RGB").quantize(2) if mode == "P" else mask.convert(mode)
    stored.save(raw / _raw_name("labels", 2))
    assert convert_pairs(raw, out) == 0
    assert sum(s.values == (0, 1) for _, _, s in _manifest(out).slices()) == 5


def test_grey_images_have_one_channel(raw, out):
    for path in (raw / "images").iterdir():
        Image.open(path).convert("L").save(path)
    assert convert_pairs(raw, out) == 0
    assert {s.channels for _, _, s in _manifest(out).slices()} == {1}


def test_rule_file(raw, out, tmp_path, capsys):
    for number in range(6):
        mask = np.full((10, 14), 255, np.uint8)
        mask[2:8, 2:8] = 128
        mask[4:6, 4:6] = 0 if number else 9
        Image.fromarray(mask).convert("RGB").save(raw / _raw_name("labels", number))
    rule = tmp_path / "rule.yaml"
    rule.write_text("structures: {rim: 1, cup: 2}\nvalues: {255: 0, 128: 1, 0: 2}\npatient: '^ZZ(CANARY.*)[0-5]$'\n")
    assert convert_pairs(raw, out, "--rule", str(rule)) == 1
    assert "the mask has values [9] that the label rule does not name" in capsys.readouterr().out
    manifest = _manifest(out)
    assert {s.values for _, _, s in manifest.slices()} == {(0, 1, 2)}
    assert len({case.patient for case in manifest.cases}) == 1
    assert len(manifest.cases) == 5


def test_palette_indices(raw, out, tmp_path):
    for path in (raw / "labels").iterdir():
        mask = Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8), "L")
        mask.putpalette([0, 0, 0, 40, 0, 0])
        mask.save(path)
    rule = tmp_path / "rule.yaml"
    rule.write_text("structures: {disc: 1}\nvalues: {0: 0, 1: 1}\npalette_index: true\n")
    assert convert_pairs(raw, out, "--rule", str(rule)) == 0
    assert sum(1 in s.values for _, _, s in _manifest(out).slices()) == 5


@pytest.mark.parametrize(
    "text",
    ["x: 1", "[1]", "a: [", "structures: {a: 0}", "structures: {a: 1, b: 1}", "structures: {a: 2}",
     "patient: '('", "patient: abc", "values: {0: 3}", "values: {0: 0}\nthreshold: 3", "threshold: 300",
     "mask_suffixes: 3", "values: {0: 0}\npalette_index: 'no'", "palette_index: true", "palette_index: false"],
)  # fmt: skip
def test_wrong_rule_files(raw, out, tmp_path, capsys, text):
    rule = tmp_path / "rule.yaml"
    rule.write_text(text)
    assert convert_pairs(raw, out, "--rule", str(rule)) == 1
    assert capsys.readouterr().err.startswith("fedfms: rule file: ")
