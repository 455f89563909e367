"""`fedfms run`: what it checks before it starts the simulator, and the lines that it prints for a round."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedfms.cli import main
from fedfms.cli.run_progress import RunProgress
from fedfms.flare.job import build_job
from fedfms.flare.simulator_runs import records_folder, run_job
from fedfms.study import Study, find_study, load_study

SITES = ("a", "b")
SMALL = ("sites=[a,b]", "held_out=[c]", "data.phantom_images=6", "train.rounds=4")


@pytest.fixture
def study() -> Study:
    return load_study(find_study("phantom"), overrides=SMALL)


@pytest.fixture(autouse=True)
def no_simulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def simulate(*_: object, **__: object) -> int:
        raise AssertionError("the simulator was started")

    monkeypatch.setattr("fedfms.flare.simulator_runs.simulate", simulate)
    monkeypatch.chdir(tmp_path)


def _error(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["run", *command.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fedmas --study phantom", "unknown method 'fedmas'"),
        ("fedmsa --study phantm", "no study 'phantm'"),
        ("fedmsa --study polyp --root gone", "--root is not a folder"),
        ("fedmsa --study polyp --checkpoint gone.pth", "cannot read checkpoint gone.pth"),
        ("fedmsa --study phantom --set sites=[] --held-out site-1,site-2,site-3", "names no sites"),
        ("fedmsa --study phantom --out file", "file is a file"),
        ("fedmsa --study phantom --out full", "full contains something other than a run"),
    ],
)
def test_a_fault_is_one_line_before_the_simulator_starts(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    assert message in _error(command, capsys)


def test_a_site_without_data_is_one_line_before_the_simulator_starts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    line = _error("fedmsa --study polyp --root data --preset tiny --sites kvasir_seg_vestreviken_no", capsys)
    assert "kvasir_seg_vestreviken_no" in line
    assert "convert the site" in line


def test_a_folder_with_a_run_of_another_study_is_rejected_with_the_difference(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    build_job(study, run_job(Path("out")))
    options = " ".join(f"--set {override}" for override in SMALL)
    line = _error(f"fedmsa --study phantom {options} --rounds 5 --seed 3 --out out", capsys)
    assert "out holds a run of another study: seed 0, now 3; train.rounds 4, now 5; name another folder: --out" in line


def test_a_run_that_was_interrupted_before_it_had_a_job_starts(study: Study) -> None:
    Path("out").mkdir()
    Path("out/log.txt").touch()
    with pytest.raises(AssertionError, match="the simulator was started"):
        main(["run", "fedmsa", "--study", "phantom", "--out", "out"])


def _row(round_: int, site: str, **values: object) -> str:
    row = {"round": round_, "site": site, "accepted": True, "reason": "", "held_out": site == "c", "seconds": 2.0}
    return json.dumps({**row, **values}) + "\n"


def test_each_round_is_one_line_once_its_rows_are_written(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, text = Path("out"), io.StringIO()
    records = records_folder(folder)
    records.mkdir(parents=True)
    rows = records / "rounds.jsonl"
    rows.write_text(_row(0, "a"))
    (records / "run.json").write_text("{}")  # of the interrupted start
    (records / "ended.json").write_text('{"reason": "of the interrupted start"}')
    monkeypatch.setattr("fedfms.cli.run_progress.finished_rounds", lambda _: 1)
    progress = RunProgress(study, folder, Console(file=text, width=200))
    assert text.getvalue() == "resuming after round 1 of 4\n"
    with progress:
        progress.poll()
        assert progress.failure("") == ""
        (records / "run.json").unlink()
        (records / "run.json").write_text('{"format": 1}')
        rows.write_text(_row(0, "a") + _row(1, "a") + _row(1, "b")[:9])
        progress.poll()
        rows.write_text(_row(0, "a") + _row(1, "a") + _row(1, "b", accepted=False, reason="too late"))
        progress.poll()
        assert len(text.getvalue().splitlines()) == 1
        progress.poll()
        progress.poll()
        first, rejected, missing = text.getvalue().splitlines()[1:]
        assert first.startswith("round 2/4: 1 of 2 sites; val dice -; up 0.0 MB, down 0.0 MB; 2 s; about ")
        assert first.endswith(" left")
        assert (rejected, missing) == ("  b rejected: too late", "  c did not answer")
        assert progress.failure("") == "b: too late"
        (records / "ended.json").unlink()
        (records / "ended.json").write_text('{"reason": "too few sites"}')
        assert progress.failure("") == "too few sites"


def test_the_last_error_in_the_log_is_the_reason_if_the_records_have_none(study: Study) -> None:
    progress = RunProgress(study, Path("out"), Console(file=io.StringIO()))
    lines = ["2026-01-02 03:04:05,006 - ERROR - ", "2026-01-02 03:04:05,006 - ERROR - Simulator run error: no port"]
    assert progress.failure("\n".join([*lines, "2026-01-02 03:04:05,006 - INFO - after Error: text"])) == (
        "Simulator run error: no port"
    )
    assert progress.failure("Traceback (most recent call last):\n  File x\nnvflare.apis.JobError: bad job\n") == (
        "nvflare.apis.JobError: bad job"
    )
    assert progress.failure("2026-01-02 03:04:05,006 - INFO - ended") == ""


def test_resume_says_that_a_run_is_resumed_by_its_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/workspace/server/simulate_job").mkdir(parents=True)
    assert main(["resume", "out"]) == 1
    line = "fedfms: out: this is a folder of `fedfms run`; resume it with the command that started it\n"
    assert capsys.readouterr().err == line


def test_the_current_folder_is_named_if_it_holds_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").touch()
    assert f"--out: {Path.cwd().name} contains something other" in _error("fedmsa --study phantom --out .", capsys)
