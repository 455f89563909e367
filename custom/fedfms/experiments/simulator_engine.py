"""A table's run in NVFLARE's simulator: its result, as the in-process loop writes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedfms.errors import TrainingError
from fedfms.experiments.run import write_result
from fedfms.federation.inprocess import others_scores
from fedfms.files import write_atomic
from fedfms.flare.job import build_job
from fedfms.flare.resume import OURS
from fedfms.flare.simulator import SIMULATED
from fedfms.flare.simulator_runs import simulate, sites_at_once, wait_for_end
from fedfms.methods import Tensors, training_sites
from fedfms.reporting.cost.traffic import plan
from fedfms.reporting.records import read_records
from fedfms.reporting.results import make_results
from fedfms.reporting.table import participation_line
from fedfms.settings import ENV, SiteSettings
from fedfms.study import Study
from fedfms.training.state import read_tensors


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
    at_once = sites_at_once(study, settings, len(names))
    # By the number of sites, not of those at once: a run that is gone on with has the threads that it began with.
    told = settings.to_dict() | {"threads": settings.threads and max(1, settings.threads // len(names))}
    write_atomic(site_file, yaml.safe_dump({key: value for key, value in told.items() if value}), mode=0o600)
    returned = simulate(job, workspace, names, at_once, {ENV: str(site_file)}, lock)
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
