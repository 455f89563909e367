"""The command line: `check` finds planted faults, wrong usage is one line, help has examples."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fedfms.data.manifest import load_manifest
from tests.preprocessing.make import convert_pairs, main


def _plant(out, fault):
    folder = out / "d" / "s"
    path = folder / "manifest.json"
    manifest = load_manifest(out / "d" / "s")
    case = manifest.cases[0]
    image, label = folder / case.slices[0].image, folder / case.slices[0].label
    pixels = np.asarray(Image.open(image)).copy(), np.asarray(Image.open(label)).copy()
    if fault == "pixel":
        pixels[0][0, 0, 0] ^= 1
        Image.fromarray(pixels[0]).save(image)
    elif fault == "missing":
        label.unlink()
    elif fault == "value":
        pixels[1][0, 0] = 7
        Image.fromarray(pixels[1]).save(label)
    elif fault == "size":
        Image.fromarray(pixels[1].T.copy()).save(label)
    elif fault == "damaged":
        image.write_bytes(image.read_bytes()[:60])
    elif fault == "stray":
        shutil.copy(image, folder / "images" / "other.png")
    else:
        raw = json.loads(path.read_text())
        parts = raw["splits"][0]["parts"]
        parts["train"], parts["val"] = parts["val"], parts["train"]
        path.write_text(json.dumps(raw))
    return case.id


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("pixel", "the image's pixels have changed since the conversion"),
        ("missing", "the label of slice 0 is missing"),
        ("value", "label values [7] that no structure has"),
        ("size", "the label has another size"),
        ("damaged", "the image is damaged"),
        ("stray", "1 files that the manifest does not list"),
        ("split", "split held-out: in ['train'], the rule gives ['val']"),
    ],
)
def test_check_finds_planted_faults(raw, out, capsys, fault, message):
    convert_pairs(raw, out)
    case = _plant(out, fault)
    capsys.readouterr()
    assert main(["check", str(out)]) == 1
    shown = capsys.readouterr().out
    assert message in shown
    assert fault == "stray" or f"case {case}" in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["frobnicate"], 2),
        (["pairs", "--raw", "."], 2),
        (["pairs", "--raw", ".", "--out", "o", "--dataset", "../x", "--site", "s"], 2),
        (["pairs", "--raw", ".", "--out", "o", "--dataset", "x", "--site", "st elsewhere"], 2),
        (["polyp", "--raw", ".", "--out", "o", "--workers", "many"], 2),
        (["polyp", "--raw", "not-there", "--out", "o"], 1),
        (["pairs", "--raw", "not-there", "--out", "o", "--dataset", "d", "--site", "s"], 1),
        (["check", "not-there"], 1),
    ],
)
def test_bad_usage_is_one_line(tmp_path, monkeypatch, capsys, arguments, code):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(arguments) == code
    except SystemExit as exit_:
        assert exit_.code == code
    shown = capsys.readouterr()
    assert len((shown.out + shown.err).strip().splitlines()) == 1


def test_help_has_examples(capsys):
    for arguments in (["--help"], ["polyp", "--help"], ["pairs", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
    shown = capsys.readouterr().out
    assert "fedfms prepare check DATA" in shown
    assert "Citations" in shown
    assert "mask_suffixes" in shown


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("polyp", ["RAW/<site>/images/a.jpg and RAW/<site>/labels/a_mask.jpg", "OUT.keys", "--all-sites"]),
        ("pairs", ["OUT.keys"]),
    ],
)
def test_help_describes_the_layout_and_the_key_file(capsys, command, texts):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert [text for text in texts if text not in shown] == []


def test_check_reports_a_closed_output_in_one_line(out, capsys, monkeypatch):
    def fail(_):
        raise PermissionError(13, "Permission denied", "Mustermann")

    out.mkdir()
    monkeypatch.setattr("fedfms.cli.prepare.find_sites", fail)
    assert main(["check", str(out)]) == 1
    assert capsys.readouterr().err == (
        "fedfms: a file cannot be read or written: Permission denied; check names, permissions and disk space\n"
    )


def test_raw_inside_out_is_an_error(raw, capsys):
    assert convert_pairs(raw, raw.parent) == 1
    assert "the raw folder is inside the output" in capsys.readouterr().out


def test_a_damaged_key_file_is_not_replaced(raw, out, capsys):
    convert_pairs(raw, out)
    key = raw / ".fedfms-keys" / "d-s.json"
    key.write_text("{}")
    assert convert_pairs(raw, out) == 1
    assert ".fedfms-keys/d-s.json: missing key 'key file.version'; restore the key file" in capsys.readouterr().out
    assert key.read_text() == "{}"


@pytest.mark.parametrize("change", [{"links": {"a": {"name": ["ZZName"]}}}, {"key": "ab" * 31}, {"version": "ZZName"}])
def test_errors_of_the_key_file_show_no_value(raw, out, capsys, change):
    convert_pairs(raw, out)
    path = raw / ".fedfms-keys" / "d-s.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, **change}))
    capsys.readouterr()
    assert convert_pairs(raw, out) == 1
    shown = "".join(capsys.readouterr())
    assert "restore the key file" in shown
    assert not any(value in shown for value in (table["key"], "ab" * 31, "ZZName"))
