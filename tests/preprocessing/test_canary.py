"""Raw files carry a canary wherever they may hold a patient's name: it must not appear in any output."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from fedfms.data.manifest import load_manifest
from fedfms.preprocessing.check import check_site
from tests.preprocessing.make import CANARY, main

REPO = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)


def _png(path, pixels):
    info = PngInfo()
    info.add_text("PatientName", CANARY)
    info.add_itxt("Comment", CANARY, "en", CANARY, zip=False)
    exif = Image.Exif()
    exif[TiffImagePlugin.IMAGEDESCRIPTION] = CANARY
    Image.fromarray(pixels).save(path, pnginfo=info, exif=exif)


def _jpeg(path, pixels):
    exif = Image.Exif()
    exif[TiffImagePlugin.IMAGEDESCRIPTION] = CANARY
    Image.fromarray(pixels).save(path, quality=100, exif=exif, comment=CANARY)


def _tiff(path, pixels):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.IMAGEDESCRIPTION] = CANARY
    Image.fromarray(pixels).save(path, tiffinfo=tags)


def _odd_tiff(path, pixels):
    """A TIFF that Pillow does not open, with a tag whose value tifffile logs."""
    wrong = [(65000, "s", 0, CANARY, True), (315, "s", 0, CANARY, True)]
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", description=CANARY, extratags=wrong)


def _npy(path, pixels):
    np.save(path, pixels)


KINDS = {"png": _png, "jpg": _jpeg, "tif": _tiff, "tiff": _odd_tiff, "npy": _npy}


def _put(folder, number, kind, write, *, broken=None):
    stem = Path(f"{CANARY}_folder", f"{CANARY}{number}")
    image = RANDOM.integers(0, 256, (10, 14, 3), dtype=np.uint8)
    mask = np.zeros((10, 14), np.uint8)
    mask[2:6, 3:9] = 255
    for part, name, pixels in (("images", f"{stem}.{kind}", image), ("labels", f"{stem}_mask.{kind}", mask)):
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, mask[:9] if part == broken == "labels" else pixels)
    return folder / "images" / f"{stem}.{kind}"


@pytest.fixture
def marked(tmp_path):
    """A good case of each kind of file, and one of each defect; all files and the folder carry the canary."""
    raw = tmp_path / CANARY
    for number, (kind, write) in enumerate(KINDS.items()):
        _put(raw, f"good{number}", kind, write)
        _put(raw, f"size{number}", kind, write, broken="labels")
        path = _put(raw, f"cut{number}", kind, write)
        path.write_bytes(path.read_bytes()[:-200])
    _put(raw, "alone", "png", _png).unlink()
    twice = _put(raw, "twice", "png", _png)
    _tiff(twice.with_suffix(".tif"), np.zeros((10, 14), np.uint8))
    away = tmp_path / f"{CANARY}.png"
    linked = _put(raw, "linked", "png", _png)
    linked.rename(away)
    linked.symlink_to(away)
    (raw / "images" / f"{CANARY}.dcm").write_text(CANARY)
    return raw


def everything(folder):
    """Names and content of all files in a folder."""
    shown = []
    for path in folder.rglob("*"):
        shown.append(str(path.relative_to(folder)))
        if path.is_file():
            shown.append(path.read_bytes().decode("latin-1"))
    return "\n".join(shown)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_canary_does_not_leak(marked, out, capfd, caplog, workers):
    arguments = ["--dataset", "d", "--site", "s", "--workers", str(workers)]
    assert main(["pairs", "--raw", str(marked), "--out", str(out), *arguments]) == 1
    assert main(["check", str(out)]) == 0
    shown = "".join(capfd.readouterr()) + caplog.text
    folder = out / "d" / "s"
    assert len(load_manifest(folder).cases) >= len(KINDS)
    assert shown.count("and mask 14 x 9 px differ") == len(KINDS)
    assert shown.count("leads out of the raw folder") == 1
    written = everything(out)
    for text in (CANARY, str(marked.parent)):
        assert text not in written
        assert text not in shown
    assert CANARY in everything(marked / ".fedfms-keys")  # the table, which stays at the site
    assert check_site(folder) == []


@pytest.mark.slow
def test_the_canary_does_not_leak_from_a_process(marked, out):
    """Neither in what libraries write without Python's streams, nor in a traceback."""
    command = [sys.executable, "-X", "dev", "-m", "preprocessing", "pairs", "--raw", str(marked), "--out", str(out)]
    done = subprocess.run(
        [*command, "--dataset", "d", "--site", "s"], cwd=REPO, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPO / "custom")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for text in (CANARY, str(marked)):
        assert text not in done.stdout + done.stderr
        assert text not in everything(out)


@pytest.mark.parametrize("gone", ["labels", "images", "."])
def test_the_canary_does_not_leak_into_usage_errors(marked, out, capfd, gone):
    (marked / gone).rename(marked.parent / "gone")
    arguments = ["--dataset", "d", "--site", "s", "--workers", "0"]
    assert main(["pairs", "--raw", str(marked), "--out", str(out), *arguments]) == 1
    rule = marked.parent / f"{CANARY}.yaml"
    rule.write_text(f"structures: {{{CANARY}: [")
    assert main(["pairs", "--raw", str(marked), "--out", str(out), *arguments, "--rule", str(rule)]) == 1
    assert CANARY not in "".join(capfd.readouterr())
