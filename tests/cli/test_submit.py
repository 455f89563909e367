"""`fedfms submit`, as a study lead types it."""

from __future__ import annotations

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


def test_a_run_that_went_well(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _fetched(fake, tmp_path, rows=[
        make_row(number, site, None, reason="held out" if site == "c" else "") for number in range(3) for site in "abc"
    ])  # fmt: skip
    fake.answers("job monitor", [runs(row(0, "a")), state(COMPLETED)])
    assert _submit(fake, tmp_path, str(JOB)) == 0
    out = capsys.readouterr().out
    assert out.index(f"submitted: {ID}") < out.index("it runs") < out.index("round 1/3") < out.index("round 3/3")
    assert out.index("round 3/3") < out.index("Dice") < out.index(str(run))
    assert (run / "fedfms" / "report" / "table.md").is_file()


def test_a_run_without_a_named_site_ends_with_its_name(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fetched(fake, tmp_path)  # b is refused, and then does not answer
    fake.answers("job monitor", [state(COMPLETED)])
    assert _submit(fake, tmp_path, "--watch", ID) == 3
    told = capsys.readouterr()
    assert told.err == "fedfms: b: left after round 2\n"
    assert "  b refused: adapter.0.weight [3, 4] holds NaN" in told.out
    assert not fake.calls("job submit")


def test_a_run_that_ended_badly_is_shown_as_far_as_it_came(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _fetched(fake, tmp_path, finished=False)
    fake.answers("job monitor", [state("FINISHED:ABORTED")])
    assert _submit(fake, tmp_path, str(JOB), "--retries", "3") == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"fedfms: job {ID}: it ended as ABORTED (b: left after round 2)")
    assert told.err.count("\n") == 1
    assert str(run) in told.out and "NOT VALID" in told.out


def test_a_run_whose_records_cannot_be_read_is_no_success(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fetched(fake, tmp_path)
    (tmp_path / "server" / "server" / "simulate_job" / "fedfms" / "run.json").unlink()
    fake.answers("job monitor", [state(COMPLETED)])
    assert _submit(fake, tmp_path, "--watch", ID) == 3
    assert "no table: " in capsys.readouterr().out


def test_the_limit_says_how_to_go_on(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answers("job monitor", [{"sleep": 60}])
    assert _submit(fake, tmp_path, str(JOB), "--limit", str(2 / 3600)) == 1
    told = capsys.readouterr()
    assert f"fedfms submit --watch {ID} --kit {fake.kit} --out {tmp_path / 'out'}\n" in told.out
    assert f"fedfms submit --abort {ID} --kit {fake.kit}\n" in told.out
    assert told.err == f"fedfms: job {ID}: it has not ended in the time to watch it; it goes on\n"
    assert not fake.calls("job abort")


_COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this
from fedfms.flare import nvflare_cli
from fedfms.cli import main
nvflare_cli._nvflare = lambda form: [sys.executable, sys.argv[1], "--format", form]
sys.exit(main(sys.argv[2:]))
"""


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(fake: Fake, tmp_path: Path) -> None:
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
    assert "the job goes on" in out and f"--watch {ID} " in out and f"--abort {ID} " in out
    assert not fake.calls("job abort")


def test_stopping_a_job(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--abort", ID, "--kit", str(fake.kit)]) == 0
    (call,) = fake.calls()
    assert call.startswith(f"job abort {ID} --force")  # without it, NVFLARE would ask, and nobody answers


@pytest.mark.parametrize("more", [[], [str(JOB), "--watch", ID], ["--watch", ID, "--abort", ID]])
def test_one_of_three_ways(fake: Fake, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _submit(fake, tmp_path, *more) == 1
    assert "one of three ways" in capsys.readouterr().err
    assert not fake.calls()


@pytest.mark.parametrize("more", [["--watch", "../../etc"], ["--abort", "--all"], ["job", "--limit", "0"]])
def test_wrong_usage_is_told_as_such(fake: Fake, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _submit(fake, tmp_path, *more)


def test_what_is_no_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(JOB), "--kit", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        "fedfms: --kit: this is not a person's kit; name the folder of one that is opened\n"
    )
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_nvflare() -> None:
    code = "import sys; from fedfms import cli; cli._parser(); print('nvflare' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_wait_is_told(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedfms.flare.watch._ASK_S", 0.0)
    fake.answers("job meta", ok(schedule_history=["2026-11-21 23:45:59: connected sites (1) < min_sites (2)"]))
    fake.answers("job monitor", [state("SUBMITTED"), state("FINISHED:CAN_NOT_SCHEDULE")])
    assert _submit(fake, tmp_path, str(JOB)) == 1
    told = capsys.readouterr()
    assert "it waits: connected sites (1) < min_sites (2)" in told.out
    assert "CAN_NOT_SCHEDULE" in told.err
