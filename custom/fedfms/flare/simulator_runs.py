"""Starts a job in NVFLARE's simulator, with all sites on this machine, and resumes an interrupted run."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil
import yaml

from fedfms.errors import StudyError, TrainingError
from fedfms.files import locked, write_atomic
from fedfms.flare.job import build_job
from fedfms.flare.resume import RUN_SUBFOLDER, job_ids
from fedfms.flare.resume_job import read_job
from fedfms.flare.simulator import SERVER, SIMULATED, state_folder
from fedfms.machine import free_memory, usable_cores
from fedfms.methods import plugin_origins, training_sites
from fedfms.reporting.cost.step import estimate
from fedfms.settings import ENV, SiteSettings
from fedfms.study import Study

_ENGINE = "fedfms.flare.simulator"
_SIMULATOR = "nvflare.private.fed.app.simulator.simulator"
_WORKER = "nvflare.private.fed.app.simulator.simulator_worker"
_GRACE_S = 30.0
_POLL_S = 0.3
_PROCESS_BYTES = 2**29  # of a site's process without its step: Python, torch, NVFLARE
_MEMORY_SHARE = 0.5  # of a run's free memory, for its sites; images and the server need the rest
_JOB, _WORKSPACE, _SITE = RUN_FILES = ("job", "workspace", "site.yaml")  # in the folder of a run of `run_study`


def sites_at_once(study: Study, settings: SiteSettings, sites: int) -> int:
    """Number of sites to run in parallel.

    All of them, each in one process for the whole run, if they fit into the run's share of memory. Otherwise one per
    core (always so on a GPU), with a new process for each task, which imports and builds everything again.
    """
    cores = min(sites, usable_cores())
    if sites == cores or settings.torch_device.type != "cpu":
        return cores
    need = sites * (_PROCESS_BYTES + estimate(study, settings))
    share = min(1.0, settings.threads / usable_cores()) if settings.threads else 1.0  # of this run, as of the cores
    return sites if need < _MEMORY_SHARE * share * free_memory() else cores


def simulate(
    job: Path,
    workspace: Path,
    names: Sequence[str],
    threads: int | None,
    env: Mapping[str, str],
    lock: int,
    *,
    log: IO[bytes] | None = None,
    watch: Callable[[], None] | None = None,
) -> int:
    """Run a job that resumes the state in its workspace; returns the simulator's exit code.

    Args:
        threads: sites in parallel; None: one per core. With fewer threads than sites, each task is a new process.
        lock: a file descriptor that the simulator's processes hold open.
        log: receives what the simulator prints; None: this process's output.
        watch: called several times a second while the simulator runs.
    """
    at_once = threads or min(len(names), usable_cores())
    process = subprocess.Popen(
        [
            sys.executable, "-m", _ENGINE, str(job), "-w", str(workspace), "-c", ",".join(names), "-t", str(at_once),
            "--parent", str(os.getpid()),
        ],
        env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        pass_fds=(lock,), start_new_session=True,
    )  # fmt: skip
    try:
        while watch is not None and process.poll() is None:
            watch()
            time.sleep(_POLL_S)
        return process.wait()
    finally:
        _end(process)


def _end(simulator: "subprocess.Popen[bytes]") -> None:
    """Kill a simulator that runs, and its sites' processes, each of which leads a process group of its own."""
    processes: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        processes = psutil.Process(simulator.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(simulator.pid, signal.SIGKILL)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_GRACE_S)
    simulator.wait()


def run_study(
    study: Study, settings: SiteSettings, folder: Path, lock: int, *, threads: int | None = None,
    log: IO[bytes] | None = None, watch: Callable[[], None] | None = None,
) -> Path:  # fmt: skip
    """Run or resume a study with all its sites below `folder`; returns the folder of its records.

    Args:
        threads: sites in parallel; None: as many as fit into memory.
        lock, log, watch: as for `simulate`.

    Raises:
        TrainingError: the simulator failed, or the run has no final scores.
    """
    workspace, job = run_workspace(folder), run_job(folder)
    wait_for_end(workspace)
    build_job(study, job, resume=[SIMULATED])
    names = [*training_sites(study), *study.held_out]
    # Threads by the number of sites, not of concurrent sites, so that a resumed run keeps its thread count.
    threads_each = settings.threads and max(1, settings.threads // len(names))
    allowed = [origin.distribution for origin in plugin_origins(study)]  # the sites are this person's own
    own = settings.to_dict() | {"threads": threads_each, "plugins": allowed}
    site_file = folder.resolve() / _SITE
    write_atomic(site_file, yaml.safe_dump(own), mode=0o600)
    at_once = threads or sites_at_once(study, settings, len(names))
    returned = simulate(job, workspace, names, at_once, {ENV: str(site_file)}, lock, log=log, watch=watch)
    records = records_folder(folder)
    if returned or not (records / "final.json").is_file():
        killed = returned in (-signal.SIGKILL, 256 - signal.SIGKILL)  # by the simulator's own process, or inside it
        what = "was killed, possibly for lack of memory" if killed else "ended without final scores"
        raise TrainingError(f"the simulator {what}", where=folder.name, do="see its log.txt")
    return records


def run_workspace(folder: Path) -> Path:
    """The simulator's workspace of a run of `run_study`."""
    return folder / _WORKSPACE


def run_job(folder: Path) -> Path:
    """The job of a run of `run_study`."""
    return folder / _JOB


def records_folder(folder: Path) -> Path:
    """The records (`fedfms.reporting.records`) of a run of `run_study`."""
    return run_workspace(folder) / SERVER / SIMULATED / RUN_SUBFOLDER


def is_simulated(workspace: Path) -> bool:
    """Whether a folder is a simulator's workspace, possibly one whose resumption was interrupted at its start."""
    return (workspace / SERVER / SIMULATED).is_dir() or (state_folder(workspace) / _JOB / "meta.json").is_file()


def resume_simulated(workspace: Path, threads: int | None) -> None:
    """Run the remaining rounds of an interrupted run in its workspace, with the settings of this site.

    Args:
        threads: sites in parallel; None: one per core.

    Raises:
        StudyError: the workspace's job is not one of this package.
        TrainingError: the simulator failed, or the run is still running.
    """
    wait_for_end(workspace)
    folder = state_folder(workspace)
    with locked(folder) as lock:
        job, sites = folder / _JOB, folder / "sites.json"
        if any((workspace / SERVER / SIMULATED).glob("app_*")):  # false if an earlier resumption was interrupted early
            write_atomic(sites, json.dumps(_sites(workspace)))
            build_job(read_job(workspace / SERVER / SIMULATED)[0], job, resume=[SIMULATED])
        names = job_ids(json.loads(sites.read_text(encoding="utf-8")))
        if returned := simulate(job, workspace, names, threads, {}, lock):
            what = f"the simulator ended with exit code {returned}"
            raise TrainingError(what, where=workspace.name, do="read its log above")
    shutil.rmtree(folder)


def _sites(workspace: Path) -> list[str]:
    """Names of all sites of the run."""
    try:
        meta = json.loads((workspace / SERVER / SIMULATED / "meta.json").read_text(encoding="utf-8"))
        return [str(client["name"]) for client in meta["job_clients"]]
    except (OSError, ValueError, LookupError, TypeError):
        raise StudyError("the run does not name its sites", where=workspace.name, do="run its job again") from None


def wait_for_end(workspace: Path) -> None:
    """Wait for the sites' workers of a killed simulator: each checks every second whether its parent lives.

    Raises:
        TrainingError: the simulator itself is running, or a worker does not end.
    """
    until = time.monotonic() + _GRACE_S
    while orphaned := list(_running(workspace)):
        if not all(orphaned) or time.monotonic() > until:
            raise TrainingError("the run is still running", where=workspace.name, do="wait for its end, or stop it")
        time.sleep(0.1)


def _running(workspace: Path) -> Iterator[bool]:
    """For each process of a simulator in `workspace`: whether it is an orphaned worker, which will end."""
    wanted = workspace.resolve()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            line = process.cmdline()
            if _is_simulator(line) and any(wanted in (path, *path.parents) for path in _workspaces(process, line)):
                # NVFLARE passes its own process id to a worker; an orphan has another parent.
                yield _WORKER in line and f"--parent_pid {process.ppid()} " not in f"{' '.join(line)} "


def _is_simulator(line: Sequence[str]) -> bool:
    """Whether a command line is `nvflare simulator`, or one of its modules."""
    pairs = set(itertools.pairwise(line))
    if any(("-m", module) in pairs for module in (_WORKER, _SIMULATOR, _ENGINE)):
        return True
    return any(Path(one).name in ("nvflare", "nvflare.cli") and other == "simulator" for one, other in pairs)


def _workspaces(process: psutil.Process, line: Sequence[str]) -> Iterator[Path]:
    """The workspace folders in a simulator's command line."""
    named = [other for one, other in itertools.pairwise(line) if one in ("-w", "--workspace", "-o")]
    named += [part.partition("=")[2] for part in line if part.startswith("--workspace=")]
    try:
        folder = Path(process.cwd())
    except psutil.AccessDenied:  # another user's process: only absolute paths can be resolved
        folder = Path("/")
    for name in named:
        yield (folder / name).resolve()
