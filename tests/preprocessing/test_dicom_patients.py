"""DICOM series: patients by PatientID, and the error without pydicom."""

import sys

import pytest

from fedfms.data.manifest import load_manifest
from tests.preprocessing.make import CANARY, convert_pairs

pytest.importorskip("pydicom", reason="needs pydicom, the extra [dicom]")

from tests.preprocessing import dicom_layouts as make  # noqa: E402


def test_patients_by_patient_id(tmp_path, out, capfd):
    raw = tmp_path / "raw"
    for name, patient in (("a", f"{CANARY}1"), ("b", f"{CANARY}1"), ("c", f"{CANARY}2"), ("d", "")):
        make.series(raw / "images" / name, patient=patient)
        make.seg(raw / "labels" / f"{name}.dcm", make.masks())
    away = tmp_path / "away"
    (raw / "images" / "c").rename(away)
    (raw / "images" / "c").mkdir()
    for path in away.iterdir():
        (raw / "images" / "c" / path.name).symlink_to(path)
    assert convert_pairs(raw, out, *make.rule(tmp_path, "patient: dicom\n")) == 1
    shown = "".join(capfd.readouterr())
    assert "name no patient (PatientID)" in shown
    assert "leads out of the raw folder" in shown
    cases = load_manifest(out / "d" / "s").cases
    assert len(cases) == 2
    assert len({case.patient for case in cases}) == 1
    stored = "".join(path.read_text() for path in (raw / ".fedfms-keys").iterdir())
    assert f"{CANARY}1" not in stored.replace(f"/{CANARY}", "")


def test_files_of_several_patients_are_a_fault(tmp_path, out, capfd):
    raw = tmp_path / "raw"
    for name, change in (("good", None), (CANARY, lambda one, index: setattr(one, "PatientID", f"{CANARY}{index}"))):
        make.series(raw / "images" / name, change=change)
        make.seg(raw / "labels" / f"{name}.dcm", make.masks())
    make.one_fault(raw, out, capfd, "of several patients", make.rule(tmp_path, "patient: dicom\n"))


def test_missing_pydicom_is_one_line(tmp_path, out, capsys, monkeypatch):
    for name in [
        name for name in sys.modules if name.split(".")[0] == "pydicom" or "fedfms.preprocessing.dicom" in name
    ]:
        if not name.startswith("tests."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "raw").mkdir()
    assert convert_pairs(tmp_path / "raw", out, *make.rule(tmp_path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs pydicom, which is not installed" in line
    assert "pip install" in line
