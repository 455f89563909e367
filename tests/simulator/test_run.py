"""`fedfms run` as a person uses it: interrupted, killed, resumed by the same command, and read again."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fedfms.cli import main

from .common import records

pytestmark = [pytest.mark.federation, pytest.mark.slow]

COMMAND = [
    "run", "fedmsa", "--study", "phantom", "--threads", "2", "--sites", "a,b", "--held-out", "c", "--rounds", "2",
    "--set", "data.phantom_images=10", "--set", "federation.min_cases=1", "--set", "model.input_px=64",
    "--set", "data.phantom_px=64",
]  # fmt: skip
LIMIT_S = 200


def _command(folder: Path, *more: str) -> list[str]:
    return [*COMMAND, "--out", str(folder / "out"), *more]  # absolute, to find the processes by it


def _run(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fedfms", *_command(folder, *more)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@contextmanager
def _started(folder: Path, *more: str) -> Iterator["subprocess.Popen[str]"]:
    command, pipe = [sys.executable, "-m", "fedfms", *_command(folder, *more)], subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _processes(folder: Path) -> list[psutil.Process]:
    """The simulator's processes of the run in `folder`."""
    found = []
    for one in psutil.process_iter(["cmdline", "status"]):
        ours = f"{folder}/out/workspace" in " ".join(one.info["cmdline"] or [])
        if ours and one.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(one)
    return found


def _wait_until_gone(folder: Path) -> None:
    until = time.monotonic() + 60
    while _processes(folder) and time.monotonic() < until:
        time.sleep(0.2)
    assert _processes(folder) == []


def _read_until(process: "subprocess.Popen[str]", start: str) -> None:
    assert process.stdout is not None and process.stderr is not None
    found = any(line.startswith(start) for line in iter(process.stdout.readline, ""))
    assert found, process.stderr.read()


def test_the_same_command_resumes_after_ctrl_c_and_after_a_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _started(tmp_path) as process:
        _read_until(process, "NVFLARE's output: ")
        while not _processes(tmp_path):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, error) == (130, "fedfms: interrupted; the same command resumes the run\n")
    _wait_until_gone(tmp_path)

    with _started(tmp_path) as process:
        _read_until(process, "round 1/2: 2 of 2 sites; val dice ")
        process.send_signal(signal.SIGKILL)
    _wait_until_gone(tmp_path)

    done = _run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming after round 1 of 2" in done.stdout
    assert "valid: 2 of 2 sites in 2 of 2 rounds" in done.stdout
    assert f"NVFLARE's output: {tmp_path / 'out' / 'log.txt'}" in done.stdout
    assert " INFO " not in done.stdout
    rows, final = records(tmp_path / "out" / "workspace")
    assert sorted((row["round"], row["site"]) for row in rows) == [(n, site) for n in range(2) for site in "abc"]
    assert set(final["final"]["sites"]) == set("abc")

    assert main(_command(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("out is complete; its report:\nvalid: 2 of 2 sites")


def test_a_failed_run_names_the_reason_and_the_log(tmp_path: Path) -> None:
    done = _run(tmp_path, "--set", "train.lr=1e30")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("fedfms: out: ")
    assert "the loss became" in line
    assert line.endswith(f"see {tmp_path / 'out' / 'log.txt'}")
    assert "Traceback" not in done.stdout


def test_a_site_that_loses_its_process_ends_the_run_and_not_the_rounds_before_it(tmp_path: Path) -> None:
    """NVFLARE's simulator waits for it until the round's timeout, which is a day."""
    more = ("--threads", "3", "--rounds", "50")
    with _started(tmp_path, *more) as process:
        _read_until(process, "round 1/50: 2 of 2 sites; val dice ")
        worker = next(one for one in _processes(tmp_path) if f"{tmp_path}/out/workspace/b" in one.cmdline())
        worker.kill()
        _, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert error.startswith(
        "fedfms: out: site b: its process ended early, possibly for lack of memory; run fewer sites"
    )
    _wait_until_gone(tmp_path)
    with _started(tmp_path, *more) as process:
        _read_until(process, "resuming after round ")
