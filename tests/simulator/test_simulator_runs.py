"""Resuming a simulator's run waits for orphaned workers of a killed simulator, and for no other process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedfms.errors import TrainingError
from fedfms.flare import simulator_runs
from fedfms.flare.simulator_runs import wait_for_end

pytestmark = pytest.mark.federation

WORKER = "nvflare.private.fed.app.simulator.simulator_worker"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a sleeping process with this command line."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(*line: str, seconds: float = 60, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        sleeps = f"import time; print('up', flush=True); time.sleep({seconds})"
        process = subprocess.Popen([sys.executable, "-c", sleeps, *line], stdout=subprocess.PIPE, cwd=cwd)
        begun.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def test_orphaned_workers_are_awaited(start: Start, tmp_path: Path) -> None:
    process = start("-m", WORKER, "-o", str(tmp_path / "ws" / "a"), "--parent_pid", "4194304", seconds=3)
    assert list(simulator_runs._running(tmp_path / "ws")) == [True]
    assert process.poll() is None
    wait_for_end(tmp_path / "ws")
    assert process.wait(10) == 0
    assert list(simulator_runs._running(tmp_path / "ws")) == []


def test_a_worker_that_does_not_end_is_an_error(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator_runs, "_GRACE_S", 0.3)
    start("-m", WORKER, "-o", str(tmp_path / "ws" / "a"), "--parent_pid", "4194304")
    with pytest.raises(TrainingError, match="ws: the run is still running"):
        wait_for_end(tmp_path / "ws")


@pytest.mark.parametrize(
    "line",
    [
        ("-m", WORKER, "-o", "{ws}/a", "--parent_pid", str(os.getpid())),
        ("/opt/bin/nvflare", "simulator", "jobs/fedmsa", "-w", "ws"),
        ("-m", "nvflare.cli", "simulator", "jobs/fedmsa", "--workspace=../{name}/ws"),
        ("-m", "fedfms.flare.simulator", "job", "-w", "{ws}"),
    ],
)
def test_a_live_simulator_is_an_error_at_once(line: tuple[str, ...], start: Start, tmp_path: Path) -> None:
    start(*(part.format(ws=tmp_path / "ws", name=tmp_path.name) for part in line), cwd=tmp_path)
    begun = time.monotonic()
    with pytest.raises(TrainingError, match="ws: the run is still running"):
        wait_for_end(tmp_path / "ws")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "line",
    [
        ("fedfms", "resume", "simulator", "-w", "{ws}"),
        ("grep", WORKER, "{ws}/simulator.log"),
        ("nvflare", "simulator", "{ws}/job", "-w", "{ws}-2"),
        ("-m", WORKER, "-o", "/ws/a", "--parent_pid", "1"),
        ("-m", WORKER, "--parent_pid"),
    ],
)
def test_other_processes_are_ignored(line: tuple[str, ...], start: Start, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    start(*(part.format(ws=tmp_path / "ws") for part in line), cwd=tmp_path / "ws")
    wait_for_end(tmp_path / "ws")


def test_another_users_run_is_recognised_by_its_absolute_path(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: psutil.Process) -> str:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "cwd", denied)
    start("nvflare", "simulator", "job", "-w", str(tmp_path / "ws"))
    with pytest.raises(TrainingError, match="ws: the run is still running"):
        wait_for_end(tmp_path / "ws")


@pytest.mark.slow
def test_a_simulator_ends_when_its_parent_has_died_during_its_imports(tmp_path: Path) -> None:
    line = ["-m", "fedfms.flare.simulator", "no-job", "-w", str(tmp_path / "ws"), "-c", "a", "--parent", "4194304"]
    done = subprocess.run([sys.executable, *line], start_new_session=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
