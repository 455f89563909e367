"""Runs in NVFLARE's simulator, and resuming them: the job that a federation runs, all sites on this machine."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from fedfms.errors import StudyError, TrainingError
from fedfms.files import locked, write_atomic
from fedfms.flare.job import build_job
from fedfms.flare.resume import KEPT, job_ids
from fedfms.flare.resume_job import described
from fedfms.flare.simulator import SERVER, SIMULATED, aside
from fedfms.machine import free_memory, usable_cores
from fedfms.reporting.cost.live import estimate
from fedfms.settings import SiteSettings
from fedfms.study import Study

_ENGINE = "fedfms.flare.simulator"
_SIMULATOR = "nvflare.private.fed.app.simulator.simulator"
_WORKER = "nvflare.private.fed.app.simulator.simulator_worker"
_GRACE_S = 30.0
_PROCESS_BYTES = 2**29  # of a site's process beside its step: Python, torch, NVFLARE
_PART = 0.5  # of the memory that is free to a run: images and the server are beside
_JOB = "job"  # in the folder beside a workspace: the job that goes on with it


def sites_at_once(study: Study, settings: SiteSettings, sites: int) -> int:
    """Sites that work at once: all, each in one process to the end, where the run's share of this machine's memory
    holds them; else one a core, and a new process for each task, which imports and builds all anew.
    """
    cores = min(sites, usable_cores())
    if sites == cores or settings.torch_device.type != "cpu":
        return cores
    need = sites * (_PROCESS_BYTES + estimate(study, settings))
    of_runs = min(1.0, settings.threads / usable_cores()) if settings.threads else 1.0  # as the cores are shared out
    return sites if need < _PART * of_runs * free_memory() else cores


def simulate(
    job: Path, workspace: Path, names: Sequence[str], threads: int | None, env: Mapping[str, str], lock: int
) -> int:
    """Run a job that goes on with what its workspace holds; the simulator's exit code."""
    at_once = threads or min(len(names), usable_cores())  # fewer than sites: each task is a new process
    process = subprocess.Popen(
        [sys.executable, "-m", _ENGINE, str(job), "-w", str(workspace), "-c", ",".join(names), "-t", str(at_once)],
        env={**os.environ, **env}, stdin=subprocess.DEVNULL, pass_fds=(lock,), start_new_session=True,
    )  # fmt: skip
    try:
        returned = process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the sites' processes with it
    return returned


def is_simulated(workspace: Path) -> bool:
    """Whether a folder is a simulator's workspace, or was one when its next run was cut at its beginning."""
    return (workspace / SERVER / SIMULATED).is_dir() or (aside(workspace) / _JOB / "meta.json").is_file()


def is_kept(workspace: Path) -> bool:
    """Whether there is more to do than the run's records say: a run that was cut while it was scored."""
    return any((place / SERVER / KEPT / SIMULATED).is_dir() for place in (workspace, aside(workspace) / "run"))


def resume_simulated(workspace: Path, threads: int | None) -> None:
    """Run what is left of a simulator's run that was cut, in its workspace, with the settings of this site.

    Args:
        threads: sites at once; None: as many as there are cores.

    Raises:
        StudyError: the workspace's job is none of this package.
        TrainingError: the simulator failed; the run still goes on.
    """
    wait_for_end(workspace)
    with locked(aside(workspace)) as lock:
        job = aside(workspace) / _JOB
        if any((workspace / SERVER / SIMULATED).glob("app_*")):  # not where this was begun before, and cut at once
            write_atomic(aside(workspace) / "sites.json", json.dumps(_sites(workspace)))
            build_job(described(workspace / SERVER / SIMULATED)[0], job, resume=[SIMULATED])
        names = job_ids(json.loads((aside(workspace) / "sites.json").read_text(encoding="utf-8")))
        if returned := simulate(job, workspace, names, threads, {}, lock):
            raise TrainingError(f"the simulator ended with {returned}", where=workspace.name, do="read its log above")
    shutil.rmtree(aside(workspace))


def _sites(workspace: Path) -> list[str]:
    """Names of all sites of the run."""
    try:
        meta = json.loads((workspace / SERVER / SIMULATED / "meta.json").read_text(encoding="utf-8"))
        return [str(client["name"]) for client in meta["job_clients"]]
    except (OSError, ValueError, LookupError, TypeError):
        raise StudyError("the run does not tell its sites", where=workspace.name, do="run its job again") from None


def wait_for_end(workspace: Path) -> None:
    """Wait for the sites' workers, which outlive a simulator that was killed: each looks for it every second.

    Raises:
        TrainingError: the simulator itself is there, or a worker that does not end.
    """
    until = time.monotonic() + _GRACE_S
    while at_work := list(_at_work(workspace)):
        if not all(at_work) or time.monotonic() > until:
            raise TrainingError("the run still goes on", where=workspace.name, do="wait for its end, or stop it")
        time.sleep(0.1)


def _at_work(workspace: Path) -> Iterator[bool]:
    """For each process of the simulator that works there: whether it has lost the simulator, and will end."""
    wanted = workspace.resolve()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            line = process.cmdline()
            if _is_simulators(line) and any(wanted in (path, *path.parents) for path in _workspaces(process, line)):
                # NVFLARE tells a worker whose child it is; init, or another, has it once that is dead.
                yield _WORKER in line and f"--parent_pid {process.ppid()} " not in f"{' '.join(line)} "


def _is_simulators(line: Sequence[str]) -> bool:
    """Whether a command line is of `nvflare simulator`, or of one of the modules that it is made of."""
    pairs = set(itertools.pairwise(line))
    if any(("-m", module) in pairs for module in (_WORKER, _SIMULATOR, _ENGINE)):
        return True
    return any(Path(one).name in ("nvflare", "nvflare.cli") and other == "simulator" for one, other in pairs)


def _workspaces(process: psutil.Process, line: Sequence[str]) -> Iterator[Path]:
    """The folders that a command line of the simulator names as its own."""
    named = [other for one, other in itertools.pairwise(line) if one in ("-w", "--workspace", "-o")]
    named += [part.partition("=")[2] for part in line if part.startswith("--workspace=")]
    try:
        folder = Path(process.cwd())
    except psutil.AccessDenied:  # another user's: what is named as of the root can be told all the same
        folder = Path("/")
    for name in named:
        yield (folder / name).resolve()
