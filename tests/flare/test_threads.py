"""Sites on one machine share its cores, unless the settings or the environment set the threads."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fedfms.flare import threads
from fedfms.machine import THREADS


@pytest.fixture(autouse=True)
def _restore_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("machine", "sites", "share"), [(16, 1, 16), (16, 3, 5), (2, 4, 1)])
def test_each_site_gets_an_equal_share(machine: int, sites: int, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr("fedfms.machine.usable_cores", lambda: machine)
    monkeypatch.setattr(threads, "_local_sites", lambda: sites)
    assert threads.share_cores(0) == share


def test_settings_and_environment_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_local_sites", lambda: 1)
    monkeypatch.setenv(THREADS, "1")
    torch.set_num_threads(1)
    assert threads.share_cores(0) == 1
    assert threads.share_cores(3) == 3


@pytest.mark.slow
def test_processes_with_the_same_module_are_counted(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        textwrap.dedent(
            """
            import sys
            from fedfms.flare import threads
            print("up", flush=True)
            sys.stdin.readline()
            print(threads._local_sites(), flush=True)
            sys.stdin.readline()
            """
        )
    )
    command = [sys.executable, "-m", "worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    workers = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for worker in workers:
        assert worker.stdout.readline() == "up\n"
    counted = []
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
        counted.append(worker.stdout.readline())
    for worker in workers:
        worker.communicate("\n", timeout=30)
    assert counted == ["3\n"] * 3
