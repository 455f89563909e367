"""Seconds of federated rounds in NVFLARE's simulator by part, with one phantom image per site."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedfms.errors import TrainingError
from fedfms.flare.job import build_job
from fedfms.flare.messages import TRAIN
from fedfms.flare.resume import RUN_SUBFOLDER
from fedfms.flare.simulator import SIMULATED
from fedfms.flare.timing import FILE, Clock
from fedfms.reporting import make_report
from fedfms.settings import ENV
from fedfms.study import find_study, load_study

_ERROR_LINES = 5


def measure(method: str, backbone: str, size_px: int, sites: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row per round: its seconds in total, of each part at the sites (mean over sites), and at the server.

    `wait_s` is a site's remaining time: waiting for a free thread, for the other sites, and between task requests.
    `peak_mb`: the largest process, usually a site's.

    Raises:
        TrainingError: the run failed; with the last lines of its log.
    """
    names = [f"site-{i + 1}" for i in range(sites)]
    study = load_study(
        find_study("phantom"),
        overrides=["data.phantom_images=1", "data.augment=none", "train.local_epochs=1"],
        **{"method": method, "train.rounds": rounds, "sites": names, "held_out": [], "model.backbone": backbone,
           "model.input_px": size_px, "data.phantom_px": size_px},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        job, workspace = Path(scratch) / "job", Path(scratch) / "workspace"
        add_clock(build_job(study, job))
        _simulate(job, workspace, threads)
        results = make_report(workspace).results
        if not results["complete"]:
            raise TrainingError("the run is not complete")
        found = by_part(workspace, names)
    common = {"method": method, "backbone": backbone, "size_px": size_px, "sites": sites, "threads": threads}
    peak_mb = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10)
    sent_mb = round(results["bytes"]["total"] / 1e6 / rounds, 1)
    return [
        {**common, "round": index, **of_round, "sent_mb": sent_mb, "peak_mb": peak_mb}
        for index, of_round in enumerate(found, 1)
    ]


def _simulate(job: Path, workspace: Path, threads: int) -> None:
    command = [Path(sys.executable).with_name("nvflare"), "simulator", job, "-w", workspace, "-t", str(threads)]
    env = {key: value for key, value in os.environ.items() if key != ENV}
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        raise TrainingError(f"the simulator failed: {' '.join(done.stdout.splitlines()[-_ERROR_LINES:])}")


def add_clock(job: Path) -> None:
    """Add to a job's server and sites the component that records when the parts of a round start and end."""
    for side in ("server", "client"):
        path = job / "app" / "config" / f"config_fed_{side}.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["components"].append({"id": "clock", "path": f"{Clock.__module__}.{Clock.__name__}", "args": {}})
        path.write_text(json.dumps(config), encoding="utf-8")


def by_part(workspace: Path, sites: Sequence[str]) -> list[dict[str, float]]:
    """Seconds of each round's parts, from a simulator's workspace whose job had a clock."""
    at_sites = [list(_tasks(_read_events(workspace, name))) for name in sites]
    server = _rounds(_read_events(workspace, "server"))
    return [_parts(of_server, [site[index] for site in at_sites]) for index, of_server in enumerate(server)]


def _parts(server: dict[str, float], sites: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {part: statistics.fmean(site[part] for site in sites) for part in ("receive", "load", "train", "send")}
    wait = server["round"] - sum(means.values()) - server["aggregate"] - server["save"]
    parts = {"round": server["round"], **means, "wait": wait, "aggregate": server["aggregate"], "save": server["save"]}
    return {f"{name}_s": round(seconds, 2) for name, seconds in parts.items()}


def _rounds(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, float]]:
    """From the server's lines, the seconds of each round: total, aggregation, saving."""
    seconds = {"aggregate": 0.0, "save": 0.0}
    for event, duration, _ in _durations(lines):
        seconds[event] = duration
        if event == "round":
            yield dict(seconds)


def _tasks(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, float]]:
    """From a site's lines, the seconds of each training task; its work consists of `load` and `train`."""
    seconds = {}
    for event, duration, line in _durations(lines):
        seconds[event] = duration
        if event == "work" and line["loaded_s"] is not None:
            seconds["load"] = line["loaded_s"]
        if event == "send" and line["task"] == TRAIN:
            yield {**seconds, "train": seconds["work"] - seconds["load"]}


def _durations(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Each finished event, its seconds and its last line."""
    started: dict[str, float] = {}
    for line in lines:
        event = line["event"].removesuffix(" done")
        if event == line["event"]:
            started[event] = line["at"]
        else:
            yield event, line["at"] - started[event], line


def _read_events(workspace: Path, place: str) -> list[dict[str, Any]]:
    path = workspace / place / SIMULATED / RUN_SUBFOLDER / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
