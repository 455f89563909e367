"""Finished runs as `fedfms table` leaves them, with numbers that follow simple rules."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SITES = ("BIDMC", "HK", "UCL")
METHODS = ("fedmsa", "fedunet", "msa")
SEEDS = (0, 1)
IMAGES = 8
BASE = {"fedmsa": 0.80, "fedunet": 0.50, "msa": 0.79, "fedsca": 0.7, "fedsam": 0.6, "sam": 0.6}


def dice(method: str, seed: int, site: str, sites: Sequence[str] = SITES) -> float:
    """Dice in the standard mode: a base of the method, minus a hundredth per site, plus four hundredths per seed."""
    return round(BASE[method] - 0.01 * list(sites).index(site) + 0.04 * seed, 6)


def scores(value: float | None, structures: Sequence[str], *, images: int = IMAGES, volume: bool = False) -> Any:
    """A site's scores, suppressed if `value` is None: IoU is half of Dice, fedfms mode 0.9 of it, each further
    structure 0.1 lower.
    """
    if value is None:
        none = {"dice": None, "iou": None, "dice_sd": None, "iou_sd": None, "images": None}
        return {mode: dict.fromkeys(structures, none) for mode in ("standard", "fedfms")} | {"images": images + 1}
    found: dict[str, Any] = {}
    for mode, factor in (("standard", 1.0), ("fedfms", 0.9), *((("volume", 0.95),) if volume else ())):
        found[mode] = {}
        for index, name in enumerate(structures):
            mean = factor * (value - 0.1 * index)
            row = {"dice": mean, "iou": mean / 2, "dice_sd": 0.05, "iou_sd": 0.025, "images": images}
            found[mode][name] = row | ({"empty": 1} if mode == "standard" else {})
    return found | {"images": images + 1, "dice": value}


def study(method: str, seed: int, held_out: str | None, **values: Any) -> dict[str, Any]:
    """The study of a run."""
    sites = values.pop("sites", SITES)
    structures = values.pop("structures", ("prostate",))
    data = {
        "dataset": values.pop("dataset", "prostate"), "structures": [{"name": name} for name in structures],
        "protocol": "held-out" if held_out else "personal",
    }  # fmt: skip
    raw = {
        "name": "prostate", "title": "Prostate in T2 MRI", "method": method, "seed": seed, "data": data,
        "sites": [site for site in sites if site != held_out], "held_out": [held_out] if held_out else [],
        "model": {"backbone": "unet" if "unet" in method else "vit_b",
                  "checkpoint": None if "unet" in method else "sam_vit_b.pth"},
        "train": {"rounds": 3},
    }  # fmt: skip
    return raw | values


def image_scores(values: Sequence[float | None], structure: str = "prostate") -> dict[str, Any]:
    """Scores of single images, equal in both modes."""
    images = [
        {
            "key": f"case_{i}/0", "case": f"case_{i}",
            "scores": {mode: {structure: {"dice": value, "iou": None if value is None else value / 2}}
                       for mode in ("standard", "fedfms")},
        }
        for i, value in enumerate(values)
    ]  # fmt: skip
    return {"format": 1, "model": "final", "part": "all", "structures": [structure], "images": images}


def result(method: str, seed: int, held_out: str | None, variant: str = "", **values: Any) -> dict[str, Any]:
    """A `result.json`."""
    of = study(method, seed, held_out, **values)
    sites = values.get("sites", SITES)
    structures = [structure["name"] for structure in of["data"]["structures"]]
    held = {held_out} if held_out else set()
    entries = {
        site: {
            "part": "all" if site in held else "val" if held_out else "test", "images": IMAGES + 1,
            "held_out": site in held, "scores": scores(dice(method, seed, site, sites), structures),
        }
        for site in sites
    }  # fmt: skip
    best = {
        site: entry | {"scores": scores(dice(method, seed, site, sites) - 0.02, structures)}
        for site, entry in entries.items()
    }
    pooled = method in ("msa", "sam", "unet")
    return {
        "format": 1,
        "run": {"method": method, "seed": seed, "held_out": held_out, "variant": variant},
        "study": of,
        "protocol": of["data"]["protocol"],
        "models": {"final": {"round": 3, "sites": entries}, "best": {"round": 2, "sites": best}},
        "curve": [
            {"round": r, "dice": {site: dice(method, seed, site, sites) * r / 3 for site in sites}} for r in range(4)
        ],
        "traffic": {} if pooled else {"up_mb": 42.4, "down_mb": 42.4},
        "seconds": {"rounds": [10.0, 11.0, 12.0], "evaluate": 5.0},
        "machine": {"cpu": "a CPU", "cores": 2},
        "versions": {"fedfms": "0.1.0", "torch": "2.13.0"},
    }


def put(out: Path, content: dict[str, Any], images: dict[str, Any] | None = None) -> Path:
    """Write a run; returns its folder."""
    run = content["run"]
    name = f"{run['method']}{run['variant']}-s{run['seed']}-{run['held_out'] or 'all'}".replace("=", "")
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))
    for site, of_images in (images or {}).items():
        (folder / site / "scores").mkdir(parents=True)
        (folder / site / "scores" / "final.json").write_text(json.dumps(of_images))
    return folder


def per_image(method: str, seed: int) -> list[float | None]:
    """Dice of eight images: fedmsa is 1..6 hundredths above msa in six of them, 7 below in one, equal in one."""
    steps = {"fedmsa": (1, 2, 3, 4, 5, 6, -7, 0), "fedunet": (-30,) * IMAGES}.get(method, (0,) * IMAGES)
    return [round(0.6 + 0.01 * step + 0.02 * seed, 6) for step in steps]


def fill(out: Path, *, without: Sequence[tuple[str, int, str]] = ()) -> Path:
    """All runs of three methods, two seeds and three held-out sites, with the scores of single images."""
    for method in METHODS:
        for seed in SEEDS:
            for site in SITES:
                if (method, seed, site) not in without:
                    images = {site: image_scores(per_image(method, seed))}
                    put(out, result(method, seed, site), images)
    return out
