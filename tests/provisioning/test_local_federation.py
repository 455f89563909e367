"""Processes of kits, with stand-ins for NVFLARE's scripts: what is started is terminated."""

import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import run_nvflare
from fedfms.provisioning import federation
from fedfms.provisioning.federation import LocalFederation, free_port, local_project
from fedfms.provisioning.passphrase import PASSPHRASE_VARIABLE
from fedfms.provisioning.project import load_project


def _kit(folder: Path, script: str) -> Path:
    (folder / "startup").mkdir(parents=True)
    (folder / "startup" / "sub_start.sh").write_text(f"echo started\n{script}\n")
    return folder


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.slow
def test_started_processes_and_their_children_are_terminated_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation, "_GRACE_S", 1.0)
    before = _children()
    kits = {
        "a": _kit(tmp_path / "a", "sleep 600 & sleep 600"),
        "b": _kit(tmp_path / "b", "trap '' TERM; sleep 600 & wait; sleep 600"),  # ignores SIGTERM
    }
    with pytest.raises(KeyError), LocalFederation(kits) as running:
        for name in kits:
            running.start(name)
        running.wait("both", lambda: all("started" in running.log(name) for name in kits), 60)
        assert _children() - before
        raise KeyError("an error of a test")
    assert not _children() - before


def test_a_job_in_its_own_session_is_terminated_even_when_its_parent_has_ended(tmp_path: Path) -> None:
    """NVFLARE starts jobs so: a signal to the process group of the site does not reach them."""
    kits = {name: _kit(tmp_path / name, "setsid sleep 600 & echo $! >job; wait") for name in ("a", "b")}
    kits["c"] = _kit(tmp_path / "c", "setsid sleep 600 & echo $! >job")
    with LocalFederation(kits) as running:
        for name in kits:
            running.start(name)
        running.wait("jobs", lambda: all(_runs(kit / "job") for kit in kits.values()), 60, ["c"])
        running.stop("a")
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
from fedfms import cli
from fedfms.cli import kits
from fedfms.provisioning import federation

def run_jobs(out, jobs, timeout_s, show):
    kits = {name: out / name for name in ("a", "b")}
    with federation.LocalFederation(kits) as running:
        for name in kits:
            running.start(name)
        time.sleep(600)

federation.run_jobs = run_jobs
sys.exit(cli.main(["kits", "federation", "--job", "job", "--out", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGHUP]])
def test_a_federation_that_gets_a_signal_to_end_leaves_no_process(
    signals: list[signal.Signals], tmp_path: Path
) -> None:
    jobs = [_kit(tmp_path / name, "setsid sleep 600 & echo $! >job; wait") / "job" for name in ("a", "b")]
    command = [sys.executable, "-c", _FEDERATION, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until = time.monotonic() + 60
        while not all(_runs(job) for job in jobs) and time.monotonic() < until:
            time.sleep(0.05)
        assert all(_runs(job) for job in jobs)
        started = psutil.Process(process.pid).children(recursive=True)
        for number in signals:
            process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "fedfms: interrupted; run the same command again\n")
    assert not any(_runs(job) for job in jobs)
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_started_processes_do_not_get_the_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a passphrase of tests")
    with LocalFederation({"a": _kit(tmp_path / "a", "env; echo done")}) as running:
        running.start("a")
        running.wait("the end", lambda: "done" in running.log("a"), 60, ["a"])
        assert "PATH=" in running.log("a") and PASSPHRASE_VARIABLE not in running.log("a")
    seen: list[dict[str, str]] = []

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess([], 0, "{}", "")

    monkeypatch.setattr(subprocess, "run", run)
    run_nvflare("provision", folder=tmp_path)
    (environment,) = seen
    assert "PATH" in environment and PASSPHRASE_VARIABLE not in environment


@pytest.mark.slow
def test_waiting_stops_when_a_process_has_ended(tmp_path: Path) -> None:
    with LocalFederation({"a": _kit(tmp_path / "a", "exit 3")}) as running:
        running.start("a")
        with pytest.raises(ProvisioningError, match="a ended"):
            running.wait("the end", lambda: False, 60)


def test_waiting_stops_at_the_timeout(tmp_path: Path) -> None:
    with LocalFederation({"a": _kit(tmp_path / "a", "sleep 600")}) as running:
        running.start("a")
        with pytest.raises(ProvisioningError, match="not ready within 0 s"):
            running.wait("nothing", lambda: False, 0)


def test_only_the_owner_can_read_the_console_log(tmp_path: Path) -> None:
    with LocalFederation({"a": _kit(tmp_path / "a", "sleep 600")}) as running:
        running.start("a")
        assert stat.S_IMODE((tmp_path / "a" / "console.log").stat().st_mode) == 0o600


def test_the_project_of_this_machine_is_valid_and_uses_a_free_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation, "free_port", lambda: 4711)
    content = local_project(["site-1"], [tmp_path / "job"], {"admin@lead.example": "project_admin"})
    (tmp_path / "project.yml").write_text(yaml.safe_dump(content))
    project = load_project(tmp_path / "project.yml")
    assert (project.server.name, project.server.fed_learn_port, project.server.admin_port) == ("localhost", 4711, 4711)
    assert project.jobs == (tmp_path / "job",)


def test_a_port_in_use_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] not in {free_port() for _ in range(100)}
