"""The runs of a table: killed and taken up again, not run twice, told of when they fail, the same in NVFLARE."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import StudyError, TrainingError
from fedfms.experiments.run import RESULT, ROUNDS, curve
from fedfms.experiments.runner import CELLS, check, prepare
from fedfms.files import locked
from fedfms.settings import SiteSettings

from .make import grid, run

pytestmark = pytest.mark.slow
RUNS = ("one", "other")


def _result(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / CELLS / name / RESULT).read_text())
    return {key: content[key] for key in ("cell", "study", "models", "curve", "traffic")}


def _kill_after_a_round(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "fedfms.experiments.runner", str(folder), str(os.getpid())])
    limit = time.monotonic() + 120
    while not curve(folder) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_run_ends_with_the_same_bits_and_a_finished_one_is_not_run_again(tmp_path: Path) -> None:
    cells = grid(methods=("fedmsa",), held_out=("site-2",)).cells()
    name = cells[0].name
    assert run(cells, tmp_path / "whole") == {}
    prepare(cells[0], tmp_path / "cut", SiteSettings(cache=tmp_path / "cut" / "cache", threads=1), "reference")
    folder = tmp_path / "cut" / CELLS / name
    _kill_after_a_round(folder)
    assert curve(folder)
    assert not (folder / RESULT).exists()
    assert run(cells, tmp_path / "cut") == {}
    assert _result(tmp_path / "cut", name) == _result(tmp_path / "whole", name)
    assert [row["round"] for row in _result(tmp_path / "cut", name)["curve"]] == [0, 1, 2, 3]
    assert not list(folder.glob("*/state"))
    written = (folder / RESULT).stat().st_mtime_ns
    assert run(cells, tmp_path / "cut") == {}
    assert (folder / RESULT).stat().st_mtime_ns == written


def test_a_round_that_was_told_twice_counts_once_and_half_a_line_not_at_all(tmp_path: Path) -> None:
    rows = [{"round": 0, "dice": {"a": 0.1}}, {"round": 1, "dice": {"a": 0.2}}, {"round": 1, "dice": {"a": 0.3}}]
    (tmp_path / ROUNDS).write_text("\n".join(map(json.dumps, rows)) + '\n{"round": 2, "di')
    assert curve(tmp_path) == [rows[0], rows[2]]


def test_a_fault_of_one_run_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    good = grid(methods=("fedmsa",), held_out=("site-1",)).cells()
    lost = grid(
        study="fundus", methods=("local",), protocol="personal",
        overrides=("model.backbone=vit_tiny", "model.input_px=64", "train.rounds=1"),
    ).cells()  # fmt: skip
    faults = run([*lost, *good], tmp_path)
    assert faults.keys() == {lost[0].name}
    assert "data_root" in faults[lost[0].name]
    assert "Traceback" not in faults[lost[0].name]
    assert (tmp_path / CELLS / good[0].name / RESULT).is_file()


def test_another_study_under_the_same_name_is_refused(tmp_path: Path) -> None:
    (cell,) = grid(methods=("fedmsa",), held_out=("site-1",)).cells()
    (other,) = grid(methods=("fedmsa",), held_out=("site-1",), overrides=("train.rounds=9",)).cells()
    settings = SiteSettings(threads=1)
    prepare(cell, tmp_path, settings, "reference")
    prepare(cell, tmp_path, SiteSettings(threads=2), "reference")
    with pytest.raises(StudyError, match="another study"):
        prepare(other, tmp_path, settings, "reference")
    with pytest.raises(StudyError, match="another --engine"):
        check([cell], tmp_path, "simulator")
    task = json.loads((tmp_path / CELLS / cell.name / "cell.json").read_text())
    assert task["threads"] == 1, "sums of another number of threads differ in the last bit"
    assert (tmp_path / CELLS / cell.name / "cell.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / CELLS / cell.name / "cell.json").write_text("{")
    with pytest.raises(StudyError, match="damaged"):
        check([cell], tmp_path, "reference")


def test_a_run_whose_table_was_killed_ends_by_itself(tmp_path: Path) -> None:
    (cell,) = grid(methods=("fedmsa",), held_out=("site-1",)).cells()
    prepare(cell, tmp_path, SiteSettings(threads=1), "reference")
    folder = tmp_path / CELLS / cell.name
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    done = subprocess.run(
        [sys.executable, "-m", "fedfms.experiments.runner", str(folder), str(nobody.pid)], check=False
    )
    assert done.returncode == 1
    assert not (folder / ROUNDS).exists()


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(TrainingError, match="another process"), locked(tmp_path):
        pass


@pytest.mark.federation
@pytest.mark.parametrize(("method", "models"), [("fedmsa", {"final", "best"}), ("local", {"final"})])
def test_the_simulator_gives_the_same_result(method: str, models: set[str], tmp_path: Path) -> None:
    cells = grid(methods=(method,), held_out=("site-2",)).cells()
    assert run(cells, tmp_path / "one") == {}
    assert run(cells, tmp_path / "other", engine="simulator") == {}
    one, other = (_result(tmp_path / name, cells[0].name) for name in RUNS)
    assert [row["dice"] for row in one["curve"]] == [row["dice"] for row in other["curve"]]
    assert "site-2" in one["curve"][-1]["dice"]
    assert ("site-2" in one["curve"][0]["dice"]) == (method != "local"), "nobody sends it a model"
    assert set(one["models"]) == set(other["models"]) == models
    for name, model in one["models"].items():
        assert model["round"] == other["models"][name]["round"]
        for site, told in model["sites"].items():
            assert told["scores"] == other["models"][name]["sites"][site]["scores"]
            by_image = [tmp_path / run / CELLS / cells[0].name / site / "scores" / f"{name}.json" for run in RUNS]
            assert by_image[0].read_text() == by_image[1].read_text()
