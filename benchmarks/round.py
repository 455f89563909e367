"""Federated rounds in NVFLARE's simulator, one phantom image a site: what a federation costs beside its steps."""

from __future__ import annotations

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

from fedfms.flare.messages import TRAIN
from fedfms.flare.resume import OURS
from fedfms.flare.simulator import SIMULATED
from fedfms.flare.timing import FILE, Clock
from fedfms.reporting import make_report

_ERROR_LINES = 5
_RUN = Path(SIMULATED, OURS)


def measure(method: str, backbone: str, size_px: int, sites: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row a round: its seconds from beginning to end, and, of these, what each site (the mean over sites) and the
    server do. `wait_s` is what is left for a site: for its turn, for the others, between two questions for a task.

    Raises:
        RuntimeError: the run did not end as it should; with the last lines of its log.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job, workspace = Path(scratch) / "job", Path(scratch) / "workspace"
        names = [f"site-{i + 1}" for i in range(sites)]
        build: list[str | Path] = [
            Path(sys.executable).with_name("fedfms"), "job", "build", method, "--study", "phantom",
            "--rounds", str(rounds), "--backbone", backbone, "--held-out", "", "--set", f"sites=[{','.join(names)}]",
            "--set", f"model.input_px={size_px}", "--set", "data.phantom_images=1",
            "--set", f"data.phantom_px={size_px}", "--set", "data.augment=none", "--set", "train.local_epochs=1",
            "--out", job,
        ]  # fmt: skip
        _run(build)
        add_clock(job)
        _run([Path(sys.executable).with_name("nvflare"), "simulator", job, "-w", workspace, "-t", str(threads)])
        results = make_report(workspace).results
        if not results["complete"]:
            raise RuntimeError("the run was cut")
        found = by_part(workspace, names)
    common = {"method": method, "backbone": backbone, "size_px": size_px, "sites": sites, "threads": threads}
    # Of the largest of all processes that have ended: a site's, unless it trains next to nothing.
    peak_mb = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10)
    sent_mb = round(results["bytes"]["total"] / 1e6 / rounds, 1)
    return [
        {**common, "round": index, **of_round, "sent_mb": sent_mb, "peak_mb": peak_mb}
        for index, of_round in enumerate(found, 1)
    ]


def add_clock(job: Path) -> None:
    """Let a job's server and sites write down when the parts of a round are."""
    for side in ("server", "client"):
        path = job / "app" / "config" / f"config_fed_{side}.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["components"].append({"id": "clock", "path": f"{Clock.__module__}.{Clock.__name__}", "args": {}})
        path.write_text(json.dumps(config), encoding="utf-8")


def by_part(workspace: Path, sites: Sequence[str]) -> list[dict[str, float]]:
    """The seconds of each round's parts, of a simulator's workspace whose job had a clock."""
    at_sites = [list(_tasks(_lines(workspace / name / _RUN / FILE))) for name in sites]
    server = _rounds(_lines(workspace / "server" / _RUN / FILE))
    return [_parts(of_server, [site[index] for site in at_sites]) for index, of_server in enumerate(server)]


def _parts(server: dict[str, float], sites: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {part: statistics.fmean(site[part] for site in sites) for part in ("receive", "load", "train", "send")}
    wait = server["round"] - sum(means.values()) - server["aggregate"] - server["save"]
    told = {
        "round_s": server["round"], **{f"{part}_s": seconds for part, seconds in means.items()}, "wait_s": wait,
        "aggregate_s": server["aggregate"], "save_s": server["save"],
    }  # fmt: skip
    return {name: round(seconds, 2) for name, seconds in told.items()}


def _rounds(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, float]]:
    """Of the server's lines, each round's seconds: whole, of its mean, of writing it down."""
    seconds = {"aggregate": 0.0, "save": 0.0}
    for event, lasted, _ in _ended(lines):
        seconds[event] = lasted
        if event == "round":
            yield dict(seconds)


def _tasks(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, float]]:
    """Of a site's lines, the seconds of each task of training: `load` and `train` make up the work on it."""
    seconds = {}
    for event, lasted, line in _ended(lines):
        seconds[event] = lasted
        if event == "work" and line["loaded_s"] is not None:
            seconds["load"] = line["loaded_s"]
        if event == "send" and line["task"] == TRAIN:
            yield {**seconds, "train": seconds["work"] - seconds["load"]}


def _ended(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """What came to an end, with its seconds and its last line."""
    begun: dict[str, float] = {}
    for line in lines:
        event = line["event"].removesuffix(" done")
        if event == line["event"]:
            begun[event] = line["at"]
        else:
            yield event, line["at"] - begun[event], line


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _run(command: list[str | Path]) -> None:
    env = {key: value for key, value in os.environ.items() if key != "FEDFMS_SITE"}
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-_ERROR_LINES:])
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}:\n{tail}")
