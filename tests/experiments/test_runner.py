"""Executing runs: resumed after a kill, never repeated, errors reported, equal to NVFLARE's simulator."""

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
from fedfms.experiments.inprocess_engine import ROUNDS, read_rounds
from fedfms.experiments.result import RESULT
from fedfms.experiments.runner import TASK, check_tasks, prepare
from fedfms.files import locked
from fedfms.reporting.tables import RUNS
from fedfms.settings import SiteSettings

from .make import execute, experiment

pytestmark = pytest.mark.slow
ENGINES = ("in-process", "simulator")


def _result(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / RUNS / name / RESULT).read_text())
    return {key: content[key] for key in ("run", "study", "models", "curve", "traffic")}


def _kill_after_a_round(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "fedfms.experiments.runner", str(folder), str(os.getpid())])
    limit = time.monotonic() + 120
    while not read_rounds(folder) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_resumed_run_is_bit_equal_and_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    runs = experiment(methods=("fedmsa",), held_out=("site-2",)).runs()
    name = runs[0].name
    assert execute(runs, tmp_path / "whole") == {}
    prepare(runs[0], tmp_path / "cut", SiteSettings(cache=tmp_path / "cut" / "cache", threads=1), "in-process")
    folder = tmp_path / "cut" / RUNS / name
    _kill_after_a_round(folder)
    assert read_rounds(folder)
    assert not (folder / RESULT).exists()
    assert execute(runs, tmp_path / "cut") == {}
    assert _result(tmp_path / "cut", name) == _result(tmp_path / "whole", name)
    assert [row["round"] for row in _result(tmp_path / "cut", name)["curve"]] == [0, 1, 2, 3]
    assert not list(folder.glob("*/state"))
    written = (folder / RESULT).stat().st_mtime_ns
    assert execute(runs, tmp_path / "cut") == {}
    assert (folder / RESULT).stat().st_mtime_ns == written


def test_a_repeated_round_counts_once_and_an_incomplete_line_is_skipped(tmp_path: Path) -> None:
    rows = [{"round": 0, "dice": {"a": 0.1}}, {"round": 1, "dice": {"a": 0.2}}, {"round": 1, "dice": {"a": 0.3}}]
    (tmp_path / ROUNDS).write_text("\n".join(map(json.dumps, rows)) + '\n{"round": 2, "di')
    assert read_rounds(tmp_path) == [rows[0], rows[2]]


def test_the_error_of_one_run_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    good = experiment(methods=("fedmsa",), held_out=("site-1",)).runs()
    lost = experiment(
        study="fundus", methods=("local",), protocol="personal",
        overrides=("model.backbone=vit_tiny", "model.input_px=64", "train.rounds=1"),
    ).runs()  # fmt: skip
    errors = execute([*lost, *good], tmp_path)
    assert errors.keys() == {lost[0].name}
    assert "data_root" in errors[lost[0].name]
    assert "Traceback" not in errors[lost[0].name]
    assert (tmp_path / RUNS / good[0].name / RESULT).is_file()


def test_a_run_of_the_same_name_with_another_study_or_engine_is_an_error(tmp_path: Path) -> None:
    (run,) = experiment(methods=("fedmsa",), held_out=("site-1",)).runs()
    (other,) = experiment(methods=("fedmsa",), held_out=("site-1",), overrides=("train.rounds=9",)).runs()
    settings = SiteSettings(threads=1)
    prepare(run, tmp_path, settings, "in-process")
    prepare(run, tmp_path, SiteSettings(threads=2), "in-process")
    with pytest.raises(StudyError, match="another study"):
        prepare(other, tmp_path, settings, "in-process")
    with pytest.raises(StudyError, match="another --engine"):
        check_tasks([run], tmp_path, "simulator")
    task = json.loads((tmp_path / RUNS / run.name / TASK).read_text())
    assert task["settings"]["threads"] == 1, "the thread count changes the last bit of sums"
    assert (tmp_path / RUNS / run.name / TASK).stat().st_mode & 0o777 == 0o600
    (tmp_path / RUNS / run.name / TASK).write_text("{")
    with pytest.raises(StudyError, match="damaged"):
        check_tasks([run], tmp_path, "in-process")


def test_a_run_ends_when_its_parent_process_is_gone(tmp_path: Path) -> None:
    (run,) = experiment(methods=("fedmsa",), held_out=("site-1",)).runs()
    prepare(run, tmp_path, SiteSettings(threads=1), "in-process")
    folder = tmp_path / RUNS / run.name
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    done = subprocess.run(
        [sys.executable, "-m", "fedfms.experiments.runner", str(folder), str(nobody.pid)], check=False
    )
    assert done.returncode == 1
    assert not (folder / ROUNDS).exists()


def test_two_processes_cannot_use_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(TrainingError, match="another process"), locked(tmp_path):
        pass


@pytest.mark.federation
@pytest.mark.parametrize(("method", "models"), [("fedmsa", {"final", "best"}), ("local", {"final"})])
def test_the_simulator_gives_the_same_result(method: str, models: set[str], tmp_path: Path) -> None:
    runs = experiment(methods=(method,), held_out=("site-2",)).runs()
    assert execute(runs, tmp_path / "in-process") == {}
    assert execute(runs, tmp_path / "simulator", engine="simulator") == {}
    one, other = (_result(tmp_path / name, runs[0].name) for name in ENGINES)
    assert [row["dice"] for row in one["curve"]] == [row["dice"] for row in other["curve"]]
    assert "site-2" in one["curve"][-1]["dice"]
    assert ("site-2" in one["curve"][0]["dice"]) == (method != "local"), "it receives no model"
    assert set(one["models"]) == set(other["models"]) == models
    for name, model in one["models"].items():
        assert model["round"] == other["models"][name]["round"]
        for site, entry in model["sites"].items():
            assert entry["scores"] == other["models"][name]["sites"][site]["scores"]
            by_image = [
                tmp_path / engine / RUNS / runs[0].name / site / "scores" / f"{name}.json" for engine in ENGINES
            ]
            assert by_image[0].read_text() == by_image[1].read_text()
