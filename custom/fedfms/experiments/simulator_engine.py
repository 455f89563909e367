"""One run in NVFLARE's simulator, with a result like that of the in-process loop."""

import json
import shutil
from pathlib import Path
from typing import Any

from fedfms.errors import TrainingError
from fedfms.experiments.plan import Run
from fedfms.experiments.result import write_result
from fedfms.federation.inprocess import others_scores
from fedfms.flare.resume import RUN_SUBFOLDER
from fedfms.flare.simulator import SIMULATED
from fedfms.flare.simulator_runs import run_study, run_workspace
from fedfms.methods import Tensors, training_sites
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.reporting.records import read_records
from fedfms.reporting.results import make_results
from fedfms.reporting.table import participation_line
from fedfms.settings import SiteSettings
from fedfms.training.state import read_tensors


def run_simulated(run: Run, settings: SiteSettings, folder: Path, lock: int) -> None:
    """Execute or resume a run in the simulator below `folder`, and write its result there.

    Args:
        lock: a file descriptor that the simulator's processes hold open, so that `folder` stays locked while any of
            them lives.

    Raises:
        TrainingError: the simulator failed, the run has no final scores, or it is not valid.
    """
    study, workspace = run.study, run_workspace(folder)
    names = [*training_sites(study), *study.held_out]
    records = run_study(study, settings, folder, lock)
    _check_participation(records)
    models = json.loads((records / "final.json").read_text(encoding="utf-8"))["models"]
    rows = [json.loads(line) for line in (records / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in names:
        for scores in workspace.glob(f"{name}/{SIMULATED}/{RUN_SUBFOLDER}/scores"):
            shutil.copytree(scores, folder / name / "scores", dirs_exist_ok=True)
    if not plan_traffic(study).shared:  # the server has no model for a held-out site to score
        own_models = [_own_model(workspace, site) for site in study.sites]
        for held_out in study.held_out:
            scored = others_scores(study, held_out, settings, folder, own_models, "final")
            models["final"]["sites"][held_out] = scored
    write_result(run, folder, models, _by_round(rows), evaluate_s=None)


def _check_participation(records: Path) -> None:
    """Check that all sites took part in all rounds, as in the in-process loop.

    Raises:
        TrainingError: a site missed a round, or the run is not valid.
    """
    results = make_results(read_records(records))
    if not results["valid"] or any(entry["missed"] for entry in results["participation"].values()):
        raise TrainingError(
            participation_line(results), where="the simulator", do="remove the run's folder and start it again"
        )


def _own_model(workspace: Path, site: str) -> Tensors:
    path = workspace / site / SIMULATED / RUN_SUBFOLDER / "models" / "personal_final.pt"
    tensors: Tensors = read_tensors(path, "the site's own model")["tensors"]
    return tensors


def _by_round(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each round the Dice of each site, and the sum of the sites' seconds."""
    found = []
    for round_ in sorted({row["round"] for row in rows}):
        of_round = [row for row in rows if row["round"] == round_]
        dice = {row["site"]: (row["scores"] or {}).get("dice") for row in of_round}
        found.append({"round": round_, "dice": dice, "seconds": sum(row["seconds"] or 0.0 for row in of_round)})
    return found
