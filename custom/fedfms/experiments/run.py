"""One run of a table, in a process of its own: its rounds, its best model, its final scores, and what it took.

It can be killed at any point and started again: a round that was not finished is done again, to the same bits.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfms.errors import TrainingError
from fedfms.federation.inprocess import CompletedRound, final_scores, rounds
from fedfms.federation.state import ServerStateStore
from fedfms.files import append_line, write_atomic
from fedfms.machine import machine, versions
from fedfms.methods import METHODS, POOL, ServerState, Tensors, selects_best_model
from fedfms.reporting.cost.traffic import plan
from fedfms.reporting.movement import shift
from fedfms.reporting.scores import mean
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.state import read_tensors, write_tensors

RESULT, ROUNDS, BEST = "result.json", "rounds.jsonl", "best.pt"
FORMAT = 1


@dataclass(frozen=True)
class _Best:
    """The global model that the sites scored highest, and when they received it."""

    round: int
    dice: float
    shared: Tensors


def run_cell(
    place: Mapping[str, Any], study: Study, settings: SiteSettings, folder: Path, go_on: Callable[[], None]
) -> None:
    """Run what is left of the run in `folder`, by the in-process loop, and write its result.

    Args:
        place: its place in the table (`Cell.place`).
        go_on: called after every round; may raise to stop there.

    Raises:
        FedfmsError: with the site and the round.
    """
    started = time.perf_counter()

    def record(done: CompletedRound, before: ServerState) -> None:
        nonlocal started
        dice = {site: (result.scores or {}).get("dice") for site, result in done.results.items()}
        dice |= {site: (told["scores"] or {}).get("dice") for site, told in done.held_out.items()}
        _keep_best(folder / BEST, study, done, before)
        now = time.perf_counter()
        moved = shift((done.received[site], result.update.tensors) for site, result in done.results.items())
        row = {"round": done.round, "dice": dice, "shift": moved, "seconds": round(now - started, 3)}
        append_line(folder / ROUNDS, json.dumps(row))
        started = now

    for _ in rounds(study, (*study.sites, *study.held_out), settings, folder, record):
        go_on()
    server = ServerStateStore(folder / "server.pt").load()
    if server is None:
        raise TrainingError("the run has no rounds", where=folder.name, do="set train.rounds to 1 or more")
    models = {"final": _scored(study, settings, folder, server, "final")}
    best = _load_best(folder / BEST)
    if best is not None:
        at_best = ServerState(best.shared, best.round, study.seed)
        models["best"] = _scored(study, settings, folder, at_best, "best")
    write_result(place, study, folder, models, curve(folder), round(time.perf_counter() - started, 3))


def _scored(study: Study, settings: SiteSettings, folder: Path, server: ServerState, name: str) -> dict[str, Any]:
    return {
        "round": server.round,
        "sites": final_scores(study, (*study.sites, *study.held_out), settings, folder, server, name),
    }


def _keep_best(path: Path, study: Study, done: CompletedRound, before: ServerState) -> None:
    """Keep the model received in this round where it is the best: as NVFLARE's selector, not the first one."""
    if not selects_best_model(study) or not done.round:
        return
    dice = mean(result.scores["dice"] for result in done.results.values() if result.scores)
    old = _load_best(path)
    if dice is not None and (old is None or dice > old.dice):
        write_tensors(path, {"round": done.round, "dice": dice, "shared": before.shared}, "the best model")


def _load_best(path: Path) -> _Best | None:
    return _Best(**read_tensors(path, "the best model")) if path.is_file() else None


def write_result(
    place: Mapping[str, Any], study: Study, folder: Path, models: Mapping[str, Any], rows: Sequence[Mapping[str, Any]],
    evaluate_s: float | None,
) -> None:  # fmt: skip
    """Write `result.json`, by which a run is finished, and let go of what only an unfinished run needs.

    Args:
        models: {"final": {"round", "sites": {site: as `Site.evaluate` tells}}, and "best" where there is one}.
        rows: one a round: {"round", "dice": {site: Dice of the received model}, "seconds", and where it is known
            "shift"}.
    """
    sent = plan(study)
    content = {
        "format": FORMAT,
        "cell": dict(place),
        "study": study.to_dict(),
        "protocol": study.data.protocol,
        "models": models,
        "curve": _curve(rows, models["final"], () if sent.shared else study.held_out),
        "traffic": {} if METHODS[study.method].centralised else sent.to_dict(),  # a pool sends nothing
        "seconds": {"rounds": [row["seconds"] for row in rows], "evaluate": evaluate_s},
        "machine": machine(),
        "versions": versions(),
    }
    for scores in folder.glob(f"{POOL}/*/scores"):  # of one site of a pool: where a site by itself has them
        shutil.copytree(scores, folder / scores.parent.name / "scores", dirs_exist_ok=True)
    write_atomic(folder / RESULT, json.dumps(content, indent=1))
    for state in folder.glob("*/state"):  # several times the model; a finished run never goes on
        shutil.rmtree(state)


def _curve(
    rows: Sequence[Mapping[str, Any]], final: Mapping[str, Any], without: Collection[str]
) -> list[dict[str, Any]]:
    """Rows of the received models, and one of the final model, which nobody receives; `without` sites that had none
    (where nothing is shared, a held-out site receives nothing).
    """
    told = [
        {
            **{key: value for key, value in row.items() if key != "seconds"},
            "dice": {site: dice for site, dice in row["dice"].items() if site not in without},
        }
        for row in rows
    ]
    dice = {site: (entry["scores"] or {}).get("dice") for site, entry in final["sites"].items()}
    return [*told, {"round": final["round"], "dice": dice}]


def curve(folder: Path) -> list[dict[str, Any]]:
    """The rows of `rounds.jsonl`, one a round: of a round that was done twice, the later."""
    path = folder / ROUNDS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    by_round: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed while it wrote
            continue
        if isinstance(row, dict) and type(row.get("round")) is int:
            by_round[row["round"]] = row
    return [by_round[round_] for round_ in sorted(by_round)]
