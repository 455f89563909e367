"""Raw folders that are damaged, closed or incomplete: each problem is reported in one line."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfms.data.manifest import load_manifest
from fedfms.preprocessing.images import Fault, read_image
from tests.preprocessing.make import CANARY, convert_pairs, main, make_raw


def _tiff_without_width():
    """Two pages, the second without ImageWidth (tag 256): Pillow's n_frames raises a TypeError."""
    buffer = io.BytesIO()
    page = Image.new("L", (14, 10))
    page.save(buffer, "TIFF", save_all=True, append_images=[page])
    data = bytearray(buffer.getvalue())
    at = data.rfind(b"\x00\x01\x04\x00\x01\x00\x00\x00\x0e\x00")
    assert at > 0
    data[at : at + 2] = (60000).to_bytes(2, "little")
    return bytes(data)


def test_the_damaged_tiff_raises_a_type_error_in_pillow():
    with Image.open(io.BytesIO(_tiff_without_width())) as opened, pytest.raises(TypeError):
        _ = opened.n_frames


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_damaged_tiff_is_a_fault_of_one_image(raw, out, capsys, kind):
    old = raw / kind / f"{CANARY}3{'_mask' if kind == 'labels' else ''}.png"
    old.with_suffix(".tif").write_bytes(_tiff_without_width())
    old.unlink()
    assert convert_pairs(raw, out) == 1
    shown = "".join(capsys.readouterr())
    assert shown.count("cannot be read: damaged") == 1
    assert CANARY not in shown
    assert len(load_manifest(out / "d" / "s").cases) == 5


def test_a_damaged_tiff_does_not_affect_other_sites(tmp_path, out, capsys):
    raw = tmp_path / "raw"
    for site in ("a", "b"):
        make_raw(raw / site)
    (raw / "a" / "images" / f"{CANARY}0.png").write_bytes(_tiff_without_width())
    assert main(["polyp", "--raw", str(raw), "--out", str(out), "--workers", "0"]) == 1
    capsys.readouterr()
    assert [len(load_manifest(out / "polyp" / site).cases) for site in ("a", "b")] == [5, 6]


@pytest.mark.parametrize("error", [TypeError, RuntimeError, IndexError, MemoryError])
def test_late_failures_are_faults_too(raw, monkeypatch, error):
    def fail(self, *_, **__):
        raise error(CANARY)

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(Fault, match="^the image cannot be read") as caught:
        read_image(raw / "images" / f"{CANARY}1.png")
    assert CANARY not in str(caught.value)


def _damaged_png(monkeypatch, path):
    """Let Pillow raise an unexpected error for one file."""
    real = Image.open

    def fail(fp, *arguments, **named):
        if fp == path:
            raise TypeError("Missing dimensions")
        return real(fp, *arguments, **named)

    monkeypatch.setattr(Image, "open", fail)


def test_check_reports_a_damaged_slice_and_a_second_run_writes_it(raw, out, capsys, monkeypatch):
    convert_pairs(raw, out)
    folder = out / "d" / "s"
    path = folder / load_manifest(folder).cases[0].slices[0].image
    with monkeypatch.context() as patch:
        _damaged_png(patch, path)
        assert main(["check", str(out)]) == 1
        assert "the image is damaged, or neither PNG nor WebP" in capsys.readouterr().out
        assert convert_pairs(raw, out) == 0
    assert main(["check", str(out)]) == 0


def _close(monkeypatch, *folders):
    """Deny access to folders; chmod has no effect for root, who may run the tests."""
    closed = {str(folder) for folder in folders}

    def guard(module, name, inside):
        real = getattr(module, name)

        def look(path, *arguments, **named):
            places = [str(path), *(map(str, Path(path).parents) if inside else ())]
            if closed & set(places[1:] if inside else places):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **named)

        monkeypatch.setattr(module, name, look)

    guard(os, "scandir", inside=False)
    guard(os, "listdir", inside=False)
    guard(os, "stat", inside=True)
    guard(Path, "iterdir", inside=False)  # Python 3.10's pathlib has its own references to os
    guard(Path, "stat", inside=True)


def _one_line(capsys, *texts):
    shown = "".join(capsys.readouterr())
    assert CANARY not in shown
    assert "Traceback" not in shown
    for text in texts:
        assert len([line for line in shown.splitlines() if text in line]) == 1, shown
    return shown


def test_a_closed_subfolder_stops_the_site_and_changes_nothing(raw, out, capsys, monkeypatch):
    convert_pairs(raw, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for kind, suffix in (("images", ""), ("labels", "_mask")):
        (raw / kind / f"{CANARY}x").mkdir()
        name = f"{CANARY}5{suffix}.png"
        (raw / kind / name).rename(raw / kind / f"{CANARY}x" / name)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        _close(patch, raw / "images" / f"{CANARY}x")
        assert convert_pairs(raw, out) == 1
    _one_line(capsys, "site s: a folder in images/ cannot be read: Permission denied")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("closed", [".", "images", ".fedfms-keys"])
def test_closed_folders_of_pairs(raw, out, capsys, monkeypatch, closed):
    (raw / ".fedfms-keys").mkdir()
    with monkeypatch.context() as patch:
        _close(patch, raw / closed)
        assert convert_pairs(raw, out) == 1
    _one_line(capsys, "cannot be read: Permission denied")
    assert not out.exists()
    assert not list((raw / ".fedfms-keys").iterdir())


def test_a_closed_raw_folder_of_polyp(tmp_path, out, capsys, monkeypatch):
    raw = tmp_path / CANARY
    make_raw(raw / "a")
    with monkeypatch.context() as patch:
        _close(patch, raw)
        assert main(["polyp", "--raw", str(raw), "--out", str(out)]) == 1
    _one_line(capsys, "cannot be read: Permission denied")


def test_a_closed_site_folder_of_polyp(tmp_path, out, capsys, monkeypatch):
    """Other sites are converted; the closed one is counted and not named."""
    raw = tmp_path / "raw"
    for site in (CANARY, "b"):
        make_raw(raw / site)
    arguments = ["polyp", "--raw", str(raw), "--out", str(out), "--workers", "0"]
    with monkeypatch.context() as patch:
        _close(patch, raw / CANARY)
        assert main(arguments) == 1
        _one_line(capsys, "1 folders in --raw cannot be read")
        assert main([*arguments, "--site", "b"]) == 0
    assert [p.name for p in (out / "polyp").iterdir()] == ["b"]


def test_a_closed_file_is_a_fault(raw, out, capsys, monkeypatch):
    real = Image.open

    def look(path, *arguments, **named):
        if str(path).endswith(f"{CANARY}2.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Image, "open", look)
    assert convert_pairs(raw, out) == 1
    _one_line(capsys, "the image cannot be read: permission denied")


def test_a_broken_link_is_a_fault(raw, out, capsys):
    path = raw / "images" / f"{CANARY}2.png"
    path.unlink()
    path.symlink_to(raw / "gone.png")
    assert convert_pairs(raw, out) == 1
    _one_line(capsys, "the image is missing")


def test_an_image_without_the_patient_in_its_name_is_a_fault(raw, out, tmp_path, capsys):
    """As a separate patient, it could be split from other images of the same person."""
    rule = tmp_path / "rule.yaml"
    rule.write_text("patient: '^(.*)[1-4]$'\n")
    assert convert_pairs(raw, out, "--rule", str(rule)) == 1
    shown = "".join(capsys.readouterr())
    assert shown.count("the patient rule does not match the image's name") == 2
    assert CANARY not in shown
    cases = load_manifest(out / "d" / "s").cases
    assert (len(cases), len({case.patient for case in cases})) == (4, 1)


def test_an_empty_group_is_not_a_patient(raw, out, tmp_path, capsys):
    rule = tmp_path / "rule.yaml"
    rule.write_text("patient: '^(x*)'\n")
    assert convert_pairs(raw, out, "--rule", str(rule)) == 1
    assert "nothing could be converted" in capsys.readouterr().out
    assert not out.exists()


def test_a_mask_with_two_endings_is_a_fault(raw, out, capsys):
    Image.fromarray(np.full((10, 14), 255, np.uint8)).save(raw / "labels" / f"{CANARY}2_mask.bmp")
    assert convert_pairs(raw, out) == 1
    _one_line(capsys, "several files of this name")
    assert len(load_manifest(out / "d" / "s").cases) == 5
