"""The command `fedfms submit`."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedfms.cli import main
from fedfms.flare.watch import COMPLETED
from tests.flare.fake_nvflare import ID, Fake, ok, row, runs, state
from tests.reporting.make import make_row, make_run

REPO = Path(__file__).parents[2]
JOB = REPO / "jobs" / "fedmsa"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def _submit(fake: Fake, tmp_path: Path, *more: str) -> int:
    return main(["submit", *more, "--kit", str(fake.kit), "--out", str(tmp_path / "out")])


def _fetched(fake: Fake, tmp_path: Path, finished: bool = True, **run: object) -> Path:
    target = tmp_path / "out" / ID / "workspace"
    make_run(tmp_path / "server", finished=finished, **run)  # type: ignore[arg-type]
    fake.answers("job download", {"copy": [str(tmp_path / "server" / "server" / "simulate_job"), str(target)]})
    return target


def test_a_successful_run(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _fetched(fake, tmp_path, rows=[
        make_row(number, site, None, reason="held out" if site == "c" else "") for number in range(3) for site in "abc"
    ])  # fmt: skip
    fake.answers("job monitor", [runs(row(0, "a")), state(COMPLETED)])
    assert _submit(fake, tmp_path, str(JOB)) == 0
    out = capsys.readouterr().out
    assert out.index(f"submitted: {ID}") < out.index("the job runs") < out.index("round 1/3") < out.index("round 3/3")
    assert out.index("round 3/3") < out.index("Dice") < out.index(str(run))
    assert (run / "fedfms" / "report" / "table.md").is_file()


def test_an_absent_site_is_reported_by_name(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fetched(fake, tmp_path)  # b is rejected, and then does not answer
    fake.answers("job monitor", [state(COMPLETED)])
    assert _submit(fake, tmp_path, "--watch", ID) == 3
    output = capsys.readouterr()
    assert output.err == "fedfms: b: left after round 2\n"
    assert "  b rejected: adapter.0.weight [3, 4] holds NaN" in output.out
    assert not fake.calls("job submit")


def test_the_records_of_a_failed_run_are_shown(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _fetched(fake, tmp_path, finished=False)
    fake.answers("job monitor", [state("FINISHED:ABORTED")])
    assert _submit(fake, tmp_path, str(JOB), "--retries", "3") == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"fedfms: job {ID}: it ended as ABORTED (b: left after round 2)")
    assert output.err.count("\n") == 1
    assert str(run) in output.out and "NOT VALID" in output.out


def test_a_run_with_unreadable_records_is_not_a_success(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fetched(fake, tmp_path)
    (tmp_path / "server" / "server" / "simulate_job" / "fedfms" / "run.json").unlink()
    fake.answers("job monitor", [state(COMPLETED)])
    assert _submit(fake, tmp_path, "--watch", ID) == 3
    assert "no table: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_time_limit_prints_how_to_continue(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answers("job monitor", [{"sleep": 60}])
    assert _submit(fake, tmp_path, str(JOB), "--limit", str(2 / 3600)) == 1
    output = capsys.readouterr()
    assert f"fedfms submit --watch {ID} --kit {fake.kit} --out {tmp_path / 'out'}\n" in output.out
    assert f"fedfms submit --abort {ID} --kit {fake.kit}\n" in output.out
    assert output.err == f"fedfms: job {ID}: it has not ended within the time limit; it still runs\n"
    assert not fake.calls("job abort")


_COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
from fedfms.flare import nvflare_cli
from fedfms.cli import main
nvflare_cli._command = lambda form: [sys.executable, sys.argv[1], "--format", form]
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_prints_how_to_continue(fake: Fake, tmp_path: Path) -> None:
    fake.answers("job monitor", [state("RUNNING"), {"sleep": 600}])
    arguments = ["submit", str(JOB), "--kit", str(fake.kit), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(tmp_path / "fake.py"), *arguments], cwd=REPO, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        until = time.monotonic() + 300
        while not fake.calls("job meta") and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "the job continues" in out and f"--watch {ID} " in out and f"--abort {ID} " in out
    assert not fake.calls("job abort")


def test_stopping_a_job(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--abort", ID, "--kit", str(fake.kit)]) == 0
    (call,) = fake.calls()
    assert call.startswith(f"job abort {ID} --force")  # without it, NVFLARE asks for confirmation


@pytest.mark.parametrize("more", [[], [str(JOB), "--watch", ID], ["--watch", ID, "--abort", ID]])
def test_only_one_of_three_forms(
    fake: Fake, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _submit(fake, tmp_path, *more) == 1
    assert "exactly one of three forms" in capsys.readouterr().err
    assert not fake.calls()


@pytest.mark.parametrize("more", [["--watch", "../../etc"], ["--abort", "--all"], ["job", "--limit", "0"]])
def test_wrong_usage(fake: Fake, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _submit(fake, tmp_path, *more)


def test_a_folder_that_is_not_a_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(JOB), "--kit", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == ("fedfms: --kit: this is not a person's kit; name the folder of an opened one\n")
    assert not (tmp_path / "out").exists()


def test_help_imports_neither_nvflare_nor_torch() -> None:
    code = "import sys; from fedfms import cli; cli.make_parser(); print({'nvflare', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_wait_for_sites_is_printed(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedfms.flare.watch._REASON_S", 0.0)
    fake.answers("job meta", ok(schedule_history=["2026-11-21 23:45:59: connected sites (1) < min_sites (2)"]))
    fake.answers("job monitor", [state("SUBMITTED"), state("FINISHED:CAN_NOT_SCHEDULE")])
    assert _submit(fake, tmp_path, str(JOB)) == 1
    output = capsys.readouterr()
    assert "the job waits: connected sites (1) < min_sites (2)" in output.out
    assert "CAN_NOT_SCHEDULE" in output.err
