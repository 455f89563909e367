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

from .common import records

pytestmark = [pytest.mark.federation, pytest.mark.slow]

COMMAND = [
    sys.executable, "-m", "fedfms", "run", "fedmsa", "--study", "phantom", "--out", "out", "--threads", "2",
    "--sites", "a,b", "--held-out", "c", "--rounds", "4", "--set", "data.phantom_images=10", "--set",
    "federation.min_cases=1", "--set", "model.input_px=64", "--set", "data.phantom_px=64",
]  # fmt: skip
LIMIT_S = 200


@contextmanager
def _started(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _processes(folder: Path) -> list[psutil.Process]:
    """The simulator's processes of the run in `folder`."""
    found = []
    for one in psutil.process_iter(["cmdline", "status"]):
        ours = str(folder) in " ".join(one.info["cmdline"] or []) or "out/workspace" in (one.info["cmdline"] or [])
        if ours and one.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(one)
    return found


def _wait_until_gone(folder: Path) -> None:
    until = time.monotonic() + 60
    while _processes(folder) and time.monotonic() < until:
        time.sleep(0.2)
    assert _processes(folder) == []


def _read_until(process: "subprocess.Popen[str]", start: str) -> None:
    assert process.stdout is not None
    assert next(line for line in iter(process.stdout.readline, "") if line.startswith(start))


def test_the_same_command_resumes_after_ctrl_c_and_after_a_kill(tmp_path: Path) -> None:
    with _started(tmp_path) as process:
        _read_until(process, "NVFLARE's output: out/log.txt")
        while not _processes(tmp_path):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, error) == (130, "fedfms: interrupted; run the same command again\n")
    _wait_until_gone(tmp_path)

    with _started(tmp_path) as process:
        _read_until(process, "round 1/4: 2 of 2 sites; val dice ")
        process.send_signal(signal.SIGKILL)
    _wait_until_gone(tmp_path)

    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming after round " in done.stdout
    assert "valid: 2 of 2 sites in 4 of 4 rounds" in done.stdout
    assert "NVFLARE's output: out/log.txt" in done.stdout
    assert " INFO " not in done.stdout
    rows, final = records(tmp_path / "out" / "workspace")
    assert sorted((row["round"], row["site"]) for row in rows) == [(n, site) for n in range(4) for site in "abc"]
    assert set(final["final"]["sites"]) == set("abc")

    again = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert again.returncode == 0
    assert again.stdout.startswith("out is complete; its report:\nvalid: 2 of 2 sites")


def test_a_failed_run_names_the_reason_and_the_log(tmp_path: Path) -> None:
    command = [*COMMAND, "--set", "train.lr=1e30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("fedfms: out: ")
    assert "the loss became" in line
    assert line.endswith("see log.txt in this folder")
    assert "Traceback" not in done.stdout
