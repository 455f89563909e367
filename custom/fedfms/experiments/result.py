"""The result of a run, `result.json`, as both engines write it."""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedfms.experiments.plan import Run
from fedfms.files import write_atomic
from fedfms.machine import machine, versions
from fedfms.methods import METHODS, POOL
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.reporting.records import FORMAT

RESULT = "result.json"


def write_result(
    run: Run, folder: Path, models: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], evaluate_s: float | None
) -> None:
    """Write `result.json`, which marks a run as finished, and delete the sites' training state.

    Args:
        models: {"final": {"round", "sites": {site: result of `Site.evaluate`}}, and "best" if there is such a model}.
        rounds: for each round {"round", "dice": {site: Dice of the received model}, "seconds"}, and "shift" if known.
        evaluate_s: seconds of the final evaluation, if known.
    """
    study, traffic = run.study, plan_traffic(run.study)
    content = {
        "format": FORMAT,
        "run": asdict(run.key),
        "study": study.to_dict(),
        "protocol": study.data.protocol,
        "models": models,
        "curve": _curve(rounds, models["final"], () if traffic.shared else study.held_out),
        "traffic": {} if METHODS[study.method].centralised else traffic.to_dict(),  # pooled data: nothing is sent
        "seconds": {"rounds": [row["seconds"] for row in rounds], "evaluate": evaluate_s},
        "machine": machine(),
        "versions": versions(),
    }
    for scores in folder.glob(f"{POOL}/*/scores"):  # move a pooled site's scores to where other methods have them
        shutil.copytree(scores, folder / scores.parent.name / "scores", dirs_exist_ok=True)
    write_atomic(folder / RESULT, json.dumps(content, indent=1))
    for state in folder.glob("*/state"):  # several times the model's size; a finished run is never resumed
        shutil.rmtree(state)


def _curve(
    rounds: Sequence[Mapping[str, Any]], final: Mapping[str, Any], without: Collection[str]
) -> list[dict[str, Any]]:
    """One point per received model, and one for the final model, which no site receives.

    Args:
        without: sites to leave out of the received models: held-out sites, where nothing is shared.
    """
    points = [
        {
            **{key: value for key, value in row.items() if key != "seconds"},
            "dice": {site: dice for site, dice in row["dice"].items() if site not in without},
        }
        for row in rounds
    ]
    dice = {site: (entry["scores"] or {}).get("dice") for site, entry in final["sites"].items()}
    return [*points, {"round": final["round"], "dice": dice}]
