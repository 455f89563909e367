"""One run by the in-process loop: its rounds, its best model, its final scores.

It can be killed at any point and started again: an unfinished round is repeated, with bit-equal numbers.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfms.errors import TrainingError
from fedfms.experiments.plan import Run
from fedfms.experiments.result import write_result
from fedfms.federation.inprocess import CompletedRound, final_scores, rounds
from fedfms.federation.state import ServerStateStore
from fedfms.files import append_line
from fedfms.methods import ServerState, Tensors, selects_best_model
from fedfms.reporting.layer_shift import layer_shift
from fedfms.reporting.scores import mean
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.state import read_tensors, write_tensors

ROUNDS, BEST = "rounds.jsonl", "best.pt"


@dataclass(frozen=True)
class _Best:
    """The global model with the highest Dice at the sites, and the round in which they received it."""

    round: int
    dice: float
    shared: Tensors


def run_in_process(run: Run, settings: SiteSettings, folder: Path, after_round: Callable[[], None]) -> None:
    """Execute or resume a run in `folder`, and write its result.

    Args:
        after_round: called after every round; may raise to stop the run.

    Raises:
        FedfmsError: with the site and the round.
    """
    study, sites = run.study, (*run.study.sites, *run.study.held_out)
    started = time.perf_counter()

    def record(done: CompletedRound, before: ServerState) -> None:
        nonlocal started
        dice = {site: (result.scores or {}).get("dice") for site, result in done.results.items()}
        dice |= {site: (entry["scores"] or {}).get("dice") for site, entry in done.held_out.items()}
        _save_best(folder / BEST, study, done, before)
        now = time.perf_counter()
        moved = layer_shift((done.received[site], result.update.tensors) for site, result in done.results.items())
        row = {"round": done.round, "dice": dice, "shift": moved, "seconds": round(now - started, 3)}
        append_line(folder / ROUNDS, json.dumps(row))
        started = now

    def scored(server: ServerState, name: str) -> dict[str, Any]:
        return {"round": server.round, "sites": final_scores(study, sites, settings, folder, server, name)}

    for _ in rounds(study, sites, settings, folder, record):
        after_round()
    server = ServerStateStore(folder / "server.pt").load()
    if server is None:
        raise TrainingError("the run has no rounds", where=folder.name, do="set train.rounds to 1 or more")
    models = {"final": scored(server, "final")}
    if (best := _load_best(folder / BEST)) is not None:
        models["best"] = scored(ServerState(best.shared, best.round, study.seed), "best")
    write_result(run, folder, models, read_rounds(folder), round(time.perf_counter() - started, 3))


def _save_best(path: Path, study: Study, done: CompletedRound, before: ServerState) -> None:
    """Save the model received in this round if it is the best so far; not round 0's, as NVFLARE's selector."""
    if not selects_best_model(study) or not done.round:
        return
    dice = mean(result.scores["dice"] for result in done.results.values() if result.scores)
    old = _load_best(path)
    if dice is not None and (old is None or dice > old.dice):
        write_tensors(path, {"round": done.round, "dice": dice, "shared": before.shared}, "the best model")


def _load_best(path: Path) -> _Best | None:
    return _Best(**read_tensors(path, "the best model")) if path.is_file() else None


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rows of `rounds.jsonl`, one per round; of a repeated round, the later row."""
    path = folder / ROUNDS
    by_round: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # the incomplete last line of a killed run
            continue
        if isinstance(row, dict) and type(row.get("round")) is int:
            by_round[row["round"]] = row
    return [by_round[round_] for round_ in sorted(by_round)]
