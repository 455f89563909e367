"""Methods side by side on one study: Dice of each site's own model, MB and seconds a round, over seeds.

Runs the in-process reference loop, which gives the simulator's numbers (a test holds the two together), so that no
time goes into processes. A cell, a method with a seed, that is done is kept; one that was cut goes on after its last
round.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fedfms.experiments.run import RESULT, run_cell
from fedfms.methods import METHODS, make_method, resolve_study
from fedfms.settings import SiteSettings
from fedfms.study import find_study, load_study


def measure(
    study: str, methods: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], settings: SiteSettings,
    work: Path, jobs: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row a method: mean and s.d. over seeds of the mean Dice over sites, the sites' means, MB and s a round."""
    cells = [(method, seed) for method in methods for seed in seeds]
    arguments = [(study, method, seed, list(overrides), settings, work) for method, seed in cells]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            done = list(pool.map(_cell, *zip(*arguments, strict=True)))
    else:
        done = [_cell(*each) for each in arguments]
    by_method = {m: [cell for (name, _), cell in zip(cells, done, strict=True) if name == m] for m in methods}
    return [_row(method, found) for method, found in by_method.items()]


def _cell(
    study: str, method: str, seed: int, overrides: list[str], settings: SiteSettings, work: Path
) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = work / f"{method}-{seed}"
    if not (folder / RESULT).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        made = load_study(find_study(study), overrides=overrides, method=method, seed=seed)
        made = resolve_study(made, make_method(method, made.method_options))
        place = {"method": method, "variant": "", "seed": seed, "held_out": None}
        run_cell(place, made, settings, folder, lambda: None)
    content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    final = content["models"]["final"]["sites"]
    return {
        "dice": {site: final[site]["scores"]["dice"] for site in content["study"]["sites"]},
        "images": sum(entry["images"] for entry in final.values()),
        "round_s": statistics.median(content["seconds"]["rounds"]),
        "traffic": content["traffic"],
    }


def _row(method: str, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means = [statistics.fmean(d for d in cell["dice"].values() if d is not None) for cell in cells]
    sites = cells[0]["dice"]
    traffic = cells[0]["traffic"]
    return {
        "method": method,
        "seeds": len(cells),
        "dice": round(statistics.fmean(means), 3),
        "dice_sd": round(statistics.stdev(means), 3) if len(means) > 1 else None,
        **{f"dice {site}": _mean([cell["dice"][site] for cell in cells]) for site in sites},
        "images": cells[0]["images"],
        "up_mb": round(traffic["up_mb"], 3) if traffic else None,
        "down_mb": round(traffic["down_mb"], 3) if traffic else None,
        "round_s": round(statistics.median(cell["round_s"] for cell in cells), 1),
        "kind": _kind(method),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 3) if known else None


def _kind(method: str) -> str:
    if METHODS[method].centralised:
        return "pooled"
    return "personal" if METHODS[method].personal else "one model"
