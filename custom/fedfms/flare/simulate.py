"""One run of a table in NVFLARE's simulator: the job that a federation would run, all sites on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fedfms.errors import TrainingError
from fedfms.files import write_atomic
from fedfms.flare.job import build_job
from fedfms.grid.cell import write_result
from fedfms.methods import Tensors, trainers
from fedfms.settings import ENV, SiteSettings
from fedfms.study import Study
from fedfms.training.reference import others_scores
from fedfms.training.state import read_tensors
from fedfms.training.traffic import plan

_ENGINE = "nvflare.private.fed.app.simulator.simulator"  # what `nvflare simulator` calls, without its notice


def run_simulated(
    place: Mapping[str, Any], study: Study, settings: SiteSettings, folder: Path, lock: int
) -> None:
    """Run the study in the simulator below `folder`, from its beginning, and write its result there.

    Args:
        lock: a descriptor that the simulator's processes keep open, so that nobody else works in `folder` while any
            of them lives.

    Raises:
        TrainingError: the simulator failed, or the run has no final scores.
    """
    workspace, job = folder / "workspace", folder / "job"
    build_job(study, job)
    site_file = folder / "site.yaml"
    told = {key: value for key, value in settings.to_dict().items() if value}
    write_atomic(site_file, yaml.safe_dump(told), mode=0o600)
    names = [*trainers(study), *study.held_out]
    at_once = min(len(names), os.cpu_count() or 1)  # fewer than sites: each task is a new process
    process = subprocess.Popen(
        [sys.executable, "-m", _ENGINE, str(job), "-w", str(workspace), "-c", ",".join(names), "-t", str(at_once)],
        env={**os.environ, ENV: str(site_file)}, stdin=subprocess.DEVNULL, pass_fds=(lock,), start_new_session=True,
    )  # fmt: skip
    try:
        returned = process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the sites' processes with it
    found = list(workspace.glob("server/simulate_job/fedfms/final.json"))
    if returned or not found:
        raise TrainingError("the simulator ended without final scores", where=folder.name, do="look at its log.txt")
    run = found[0].parent
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


def _own_model(workspace: Path, site: str) -> Tensors:
    path = workspace / site / "simulate_job" / "fedfms" / "models" / "personal_final.pt"
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
