"""A small run written by hand, as the server and the sites leave it in a simulator's workspace.

Three rounds of two training sites (a, b) and a held-out one (c), two structures. Site b's update is rejected in round
1, and it does not answer in round 2.
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from fedfms.study import Study
from fedfms.training.disclosure import suppress_small_cells

REJECTED = "adapter.0.weight [3, 4] holds NaN"
MB = 1_000_000


def make_study(**values: Any) -> Study:
    """The study of the run."""
    raw = {
        "name": "eyes",
        "title": "Disc and cup",
        "method": "fedmsa",
        "seed": 7,
        "sites": ["a", "b"],
        "held_out": ["c"],
        "data": {"structures": [{"name": "disc"}, {"name": "cup"}]},
        "train": {"rounds": 3},
        "federation": {"min_sites": 1},
    }
    return Study.from_dict(raw | values)


def make_scores(
    disc: float, cup: float | None, *, images: int = 4, min_cases: int = 1, volumes: int = 0
) -> dict[str, Any]:
    """A site's scores with these standard Dice. IoU and s.d. are half of Dice, fedfms mode is 0.9 of it and, with
    volumes, volume mode a quarter. A cup of None is in no image, and so suppressed.
    """
    scores: dict[str, Any] = {mode: {} for mode in ("standard", "fedfms", *(["volume"] if volumes else []))}
    for name, dice in (("disc", disc), ("cup", cup)):
        empty = images if dice is None else 0
        scores["standard"][name] = _row(dice, images - empty) | {"empty": empty}
        scores["fedfms"][name] = _row(0.9 * (dice or 0.0), images)
        if volumes:
            scores["volume"][name] = _row(dice and dice / 4, volumes) | {"empty": 0}
    return suppress_small_cells(scores | {"images": images}, min_cases)


def _row(dice: float | None, images: int) -> dict[str, Any]:
    half = None if dice is None else dice / 2
    return {"dice": dice, "iou": half, "dice_sd": half, "iou_sd": half, "images": images}


def make_row(round_: int, site: str, scores: Any, *, reason: str = "", **more: Any) -> dict[str, Any]:
    """A line of rounds.jsonl."""
    accepted = not reason
    return {
        "round": round_,
        "site": site,
        "accepted": accepted,
        "reason": reason,
        "samples": 36 if accepted else 0,
        "train_loss": None if site == "c" else 1.0 / (round_ + 1),
        "seconds": None if site == "c" else 2.5,
        "bytes_up": MB if accepted else 0,
        "bytes_down": MB,
        "held_out": site == "c",
        "scores": scores,
        **more,
    }


def make_rows() -> list[dict[str, Any]]:
    """All lines of rounds.jsonl."""
    return [
        make_row(0, "a", make_scores(0.25, 0.0)),
        make_row(0, "b", make_scores(0.5, 0.25)),
        make_row(0, "c", make_scores(0.0, None, images=10), reason="held out"),
        make_row(1, "a", make_scores(0.5, 0.5)),
        make_row(1, "b", make_scores(0.5, 0.25), reason=REJECTED),
        make_row(1, "c", make_scores(0.5, 0.25, images=10), reason="held out"),
        make_row(2, "a", make_scores(0.75, 0.5)),
        make_row(2, "c", make_scores(0.75, 0.25, images=10), reason="held out"),
    ]


def make_models() -> dict[str, Any]:
    """The models of final.json."""

    def entry(scores: dict[str, Any], part: str = "val") -> dict[str, Any]:
        return {"scores": scores, "part": part, "images": scores["images"], "held_out": part == "all"}

    final = {
        "a": entry(make_scores(0.75, 0.75)),
        "b": entry(make_scores(0.5, 0.75)),
        "c": entry(make_scores(1.0, 0.5, images=10), "all"),
    }
    best = {
        "a": entry(make_scores(0.75, 0.5)),
        "c": entry(make_scores(0.75, 0.25, images=10), "all"),
    }
    return {"final": {"round": 3, "sites": final}, "best": {"round": 2, "sites": best}}


def make_run(
    workspace: Path,
    *,
    study: Study | None = None,
    rows: list[dict[str, Any]] | None = None,
    models: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """Write the run's records below a simulator's workspace, and two overlays at a; returns the records' folder."""
    folder = workspace / "server" / "simulate_job" / "fedfms"
    folder.mkdir(parents=True)
    run = {
        "format": 1,
        "study": (study or make_study()).to_dict(),
        "versions": {"fedfms": "0.1.0"},
        "parameters": {"total": 1_000_000, "trained": 250_000, "shared": 250_000, "shared_mb": 1.0},
        "model": {"input_px": 1024, "mask_px": 256},
        "started": "2026-11-21T08:00:00+00:00",
    }
    (folder / "run.json").write_text(json.dumps(run))
    lines = [json.dumps(row) + "\n" for row in (make_rows() if rows is None else rows)]
    (folder / "rounds.jsonl").write_text("".join(lines))
    if finished:
        (folder / "final.json").write_text(json.dumps({"models": make_models() if models is None else models}))
    pictures = workspace / "a" / "simulate_job" / "fedfms" / "overlays"
    pictures.mkdir(parents=True)
    for index in range(2):
        Image.new("RGB", (3, 1)).save(pictures / f"final_{index}.png")
    return folder
