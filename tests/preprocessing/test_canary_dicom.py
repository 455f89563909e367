"""DICOM files carry a canary in every element that may hold a name: it must not appear in any output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs pydicom, the extra [dicom]")

from fedfms.data.manifest import load_manifest  # noqa: E402
from tests.preprocessing import dicom_layouts as make  # noqa: E402
from tests.preprocessing.make import CANARY  # noqa: E402
from tests.preprocessing.test_canary import REPO, everything  # noqa: E402

MARK = CANARY[:8]  # the part that fits in a short element
UID, SLOPE = b"1.2.3.4.5.6.7.8.9.10", b"1.23456789012345"


def _known(one, index):
    one.SeriesInstanceUID, one.RescaleSlope = UID.decode(), SLOPE.decode()


def _spoil(folder, element):
    """Put the canary in place of a number or an id, which pydicom quotes in warnings and errors."""
    for path in folder.iterdir():
        contents = path.read_bytes()
        assert element in contents
        path.write_bytes(contents.replace(element, CANARY.encode().ljust(len(element), b"x")[: len(element)]))


@pytest.fixture
def marked(tmp_path):
    """Good cases and one of each defect; all files and the folder carry the canary."""
    raw = tmp_path / CANARY
    names = ("good", "uid", "slope", "cut", "text", "alone", "away")
    folders = {name: raw / "images" / f"{CANARY}_{name}" / CANARY for name in names}
    for name, folder in folders.items():
        make.series(folder, change=_known)
        if name != "alone":
            make.seg(raw / "labels" / f"{CANARY}_{name}_seg" / f"{CANARY}.dcm", make.masks())
    _spoil(folders["uid"], UID)
    _spoil(folders["slope"], SLOPE)
    cut = sorted(folders["cut"].iterdir())[0]
    cut.write_bytes(cut.read_bytes()[:-50])
    (folders["text"] / f"{CANARY}.txt").write_text(CANARY)
    moved = sorted(folders["away"].iterdir())[0]
    moved.rename(tmp_path / f"{CANARY}.dcm")
    moved.symlink_to(tmp_path / f"{CANARY}.dcm")
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("patient", ["dicom", f"^{CANARY}_(.*)$"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_canary_does_not_leak(marked, tmp_path, out, patient, workers):
    rule = tmp_path / "rule.yaml"
    rule.write_text(f"kind: dicom\npatient: {patient}\n")
    command = [sys.executable, "-X", "dev", "-W", "always", "-m", "preprocessing", "pairs", "--raw", str(marked)]
    options = ["--out", str(out), "--dataset", "d", "--site", "s", "--rule", str(rule), "--workers", str(workers)]
    done = subprocess.run(
        [*command, *options], cwd=REPO, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(REPO, "custom"))},
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in shown
    assert len(load_manifest(out / "d" / "s").cases) == 2  # an invalid id of a series is valid as an id
    for text in ("cannot be read: damaged", "not a DICOM file", "has no mask", "leads out of the raw folder"):
        assert text in shown
    for text in (MARK, str(marked.parent)):
        assert text not in shown
        assert text not in everything(out)
