"""Processes of kits, with scripts that stand in for NVFLARE's: what is started is ended."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import nvflare
from provisioning import federation
from provisioning.federation import Running, free_port, local_project
from provisioning.project import load_project
from provisioning.secret import ENV


def _kit(folder: Path, script: str) -> Path:
    (folder / "startup").mkdir(parents=True)
    (folder / "startup" / "sub_start.sh").write_text(f"echo started\n{script}\n")
    return folder


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_what_was_started_is_ended_with_its_children_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation, "_GRACE_S", 1.0)
    before = _children()
    kits = {
        "a": _kit(tmp_path / "a", "sleep 600 & sleep 600"),
        "b": _kit(tmp_path / "b", "trap '' TERM; sleep 600 & wait; sleep 600"),  # one that does not want to end
    }
    with pytest.raises(KeyError), Running(kits) as running:
        for name in kits:
            running.start(name)
        running.wait("both", lambda: all("started" in running.log(name) for name in kits), 60)
        assert _children() - before
        raise KeyError("a fault of a test")
    assert not _children() - before


def test_a_job_in_a_session_of_its_own_is_ended_even_when_its_parent_is_gone(tmp_path: Path) -> None:
    """As NVFLARE starts jobs: a signal to the group of the site's process does not reach them."""
    kits = {name: _kit(tmp_path / name, "setsid sleep 600 & echo $! >job; wait") for name in ("a", "b")}
    kits["c"] = _kit(tmp_path / "c", "setsid sleep 600 & echo $! >job")
    with Running(kits) as running:
        for name in kits:
            running.start(name)
        running.wait("jobs", lambda: all(_runs(kit / "job") for kit in kits.values()), 60, ["c"])
        running.end("a")
        assert [_runs(kits[name] / "job") for name in "abc"] == [False, True, True]
    assert not any(_runs(kit / "job") for kit in kits.values())


def _runs(file: Path) -> bool:
    try:
        return psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False


_FEDERATION = """
import sys, time
from pathlib import Path
from provisioning import cli, federation

def demo(out, jobs, limit_s, show):
    kits = {name: out / name for name in ("a", "b")}
    with federation.Running(kits) as running:
        for name in kits:
            running.start(name)
        time.sleep(600)

federation.demo = demo
sys.exit(cli.main(["federation", "--job", "job", "--out", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("told", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGHUP]])
def test_a_federation_that_is_told_to_end_leaves_no_process(told: list[signal.Signals], tmp_path: Path) -> None:
    jobs = [_kit(tmp_path / name, "setsid sleep 600 & echo $! >job; wait") / "job" for name in ("a", "b")]
    command = [sys.executable, "-c", _FEDERATION, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until = time.monotonic() + 60
        while not all(_runs(job) for job in jobs) and time.monotonic() < until:
            time.sleep(0.05)
        assert all(_runs(job) for job in jobs)
        started = psutil.Process(process.pid).children(recursive=True)
        for number in told:
            process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (1, "provisioning: interrupted\n")
    assert not any(_runs(job) for job in jobs)
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_what_is_started_does_not_get_the_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, "a passphrase of tests")
    with Running({"a": _kit(tmp_path / "a", "env; echo done")}) as running:
        running.start("a")
        running.wait("the end", lambda: "done" in running.log("a"), 60, ["a"])
        assert "PATH=" in running.log("a") and ENV not in running.log("a")
    seen: list[dict[str, str]] = []

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess([], 0, "{}", "")

    monkeypatch.setattr(subprocess, "run", run)
    nvflare("provision", folder=tmp_path)
    (given,) = seen
    assert "PATH" in given and ENV not in given


def test_one_that_ends_by_itself_is_told_and_not_waited_for(tmp_path: Path) -> None:
    with Running({"a": _kit(tmp_path / "a", "exit 3")}) as running:
        running.start("a")
        with pytest.raises(ProvisioningError, match="a ended"):
            running.wait("the end", lambda: False, 60)


def test_the_wait_has_an_end(tmp_path: Path) -> None:
    with Running({"a": _kit(tmp_path / "a", "sleep 600")}) as running:
        running.start("a")
        with pytest.raises(ProvisioningError, match="not within 0 s"):
            running.wait("nothing", lambda: False, 0)


def test_what_a_process_prints_is_its_owners(tmp_path: Path) -> None:
    with Running({"a": _kit(tmp_path / "a", "sleep 600")}) as running:
        running.start("a")
        assert stat.S_IMODE((tmp_path / "a" / "console.log").stat().st_mode) == 0o600


def test_the_project_of_this_machine_is_a_project_on_a_free_port(tmp_path: Path) -> None:
    content = local_project(["site-1"], [tmp_path / "job"], {"admin@lead.example": "project_admin"})
    (tmp_path / "project.yml").write_text(yaml.safe_dump(content))
    project = load_project(tmp_path / "project.yml")
    assert project.server["name"] == "localhost" and project.server["fed_learn_port"] != free_port()
    assert project.jobs == (tmp_path / "job",)
