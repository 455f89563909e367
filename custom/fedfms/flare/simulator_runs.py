"""Runs in NVFLARE's simulator that go on where they were cut: of a table, or anybody's.

The job that a federation would run, all sites on this machine.
"""

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
from typing import Any

import psutil
import yaml

from fedfms.errors import StudyError, TrainingError
from fedfms.experiments.run import write_result
from fedfms.experiments.runner import locked
from fedfms.federation.inprocess import others_scores
from fedfms.files import write_atomic
from fedfms.flare.job import build_job
from fedfms.flare.resume import KEPT, OURS, job_ids
from fedfms.flare.resume_job import described
from fedfms.flare.simulator import SERVER, SIMULATED, aside
from fedfms.machine import free_memory, usable_cores
from fedfms.methods import Tensors, training_sites
from fedfms.reporting.cost.live import estimate
from fedfms.reporting.cost.traffic import plan
from fedfms.reporting.records import read_records
from fedfms.reporting.results import make_results
from fedfms.reporting.table import participation_line
from fedfms.settings import ENV, SiteSettings
from fedfms.study import Study
from fedfms.training.state import read_tensors

_ENGINE = "fedfms.flare.simulator"
_SIMULATOR = "nvflare.private.fed.app.simulator.simulator"
_WORKER = "nvflare.private.fed.app.simulator.simulator_worker"
_GRACE_S = 30.0
_PROCESS_BYTES = 2**29  # of a site's process beside its step: Python, torch, NVFLARE
_PART = 0.5  # of the memory that is free to a run: images and the server are beside
_JOB = "job"  # in the folder beside a workspace: the job that goes on with it


def run_simulated(place: Mapping[str, Any], study: Study, settings: SiteSettings, folder: Path, lock: int) -> None:
    """Run the study in the simulator below `folder`, or what is left of it, and write its result there.

    Args:
        lock: a descriptor that the simulator's processes keep open, so that nobody else works in `folder` while any
            of them lives.

    Raises:
        TrainingError: the simulator failed, or the run has no final scores, or it is not valid.
    """
    workspace, job = folder / "workspace", folder / "job"
    wait_for_end(workspace)
    build_job(study, job, resume=[SIMULATED])
    site_file = folder / "site.yaml"
    names = [*training_sites(study), *study.held_out]
    at_once = _at_once(study, settings, len(names))
    # By the number of sites, not of those at once: a run that is gone on with has the threads that it began with.
    told = settings.to_dict() | {"threads": settings.threads and max(1, settings.threads // len(names))}
    write_atomic(site_file, yaml.safe_dump({key: value for key, value in told.items() if value}), mode=0o600)
    returned = _simulate(job, workspace, names, at_once, {ENV: str(site_file)}, lock)
    found = list(workspace.glob("server/simulate_job/fedfms/final.json"))
    if returned or not found:
        raise TrainingError("the simulator ended without final scores", where=folder.name, do="look at its log.txt")
    run = found[0].parent
    _check_all_took_part(run)
    models = json.loads(found[0].read_text(encoding="utf-8"))["models"]
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in names:
        for scores in workspace.glob(f"{name}/simulate_job/fedfms/scores"):
            shutil.copytree(scores, folder / name / "scores", dirs_exist_ok=True)
    if not plan(study).shared:  # the server has no model that a held-out site could score
        own = [_own_model(workspace, site) for site in study.sites]
        for held_out in study.held_out:
            models["final"]["sites"][held_out] = others_scores(study, held_out, settings, folder, own, "final")
    write_result(place, study, folder, models, _curve(rows), evaluate_s=None)


def _at_once(study: Study, settings: SiteSettings, sites: int) -> int:
    """Sites that work at once: all, each in one process to the end, where the run's share of this machine's memory
    holds them; else one a core, and a new process for each task, which imports and builds all anew.
    """
    cores = min(sites, usable_cores())
    if sites == cores or settings.torch_device.type != "cpu":
        return cores
    need = sites * (_PROCESS_BYTES + estimate(study, settings))
    of_runs = min(1.0, settings.threads / usable_cores()) if settings.threads else 1.0  # as the cores are shared out
    return sites if need < _PART * of_runs * free_memory() else cores


def _check_all_took_part(run: Path) -> None:
    """A table compares runs of all their sites in all rounds, as the in-process loop does them.

    Raises:
        TrainingError: one was without a site, be it for a round.
    """
    results = make_results(read_records(run))
    if not results["valid"] or any(entry["missed"] for entry in results["participation"].values()):
        raise TrainingError(
            participation_line(results), where="the simulator", do="remove the run's folder and start it again"
        )


def _simulate(
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
        if returned := _simulate(job, workspace, names, threads, {}, lock):
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


def _own_model(workspace: Path, site: str) -> Tensors:
    path = workspace / site / SIMULATED / OURS / "models" / "personal_final.pt"
    tensors: Tensors = read_tensors(path, "the site's own model")["tensors"]
    return tensors


def _curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By round: the Dice of each site, and the seconds that the sites took, one after another."""
    curve = []
    for round_ in sorted({row["round"] for row in rows}):
        of_round = [row for row in rows if row["round"] == round_]
        dice = {row["site"]: (row["scores"] or {}).get("dice") for row in of_round}
        curve.append({"round": round_, "dice": dice, "seconds": sum(row["seconds"] or 0.0 for row in of_round)})
    return curve
