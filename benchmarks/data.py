"""A site's data, ours against the paper's way: bytes and seconds to convert, and images a second that a loader gives.

Ours: lossless files at native resolution, resized when they are loaded, decoded slices kept in memory; beside it the
same files through MONAI's caches. The paper's code keeps each slice as two arrays, size x size x 3 and 256 x 256,
uint8, and loads them anew every epoch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.loaders import WAYS, Way
from fedfms.data import open_site
from fedfms.settings import SiteSettings
from fedfms.study import Study
from preprocessing.cli import make_parser
from preprocessing.convert import convert_site
from preprocessing.recipe import Recipe
from preprocessing.registry import DATASETS

MASK_PX = 256


def measure(dataset: str, raw: Path, site: str, size_px: int, images: int) -> list[dict[str, Any]]:
    """A row a way: MB and seconds for 1,000 slices of the site, images a second in two epochs of `images` of them.

    Raises:
        FedfmsError: the raw folder or the site is not what the data set's converter expects.
    """
    recipe = recipe_of(dataset, raw)
    with tempfile.TemporaryDirectory() as scratch:
        rows = _ours(recipe, raw, site, size_px, images, Path(scratch))
        rows.append(_papers(recipe, raw, site, size_px, images, Path(scratch)))
    return [{"dataset": dataset, "site": site, "size_px": size_px, **row} for row in rows]


def recipe_of(dataset: str, raw: Path) -> Recipe:
    """The recipe of a data set with no options given."""
    arguments = make_parser().parse_args([dataset, "--raw", str(raw), "--out", "OUT"])
    recipe: Recipe = DATASETS[dataset].recipe(arguments)
    return recipe


def _ours(recipe: Recipe, raw: Path, site: str, size_px: int, images: int, scratch: Path) -> list[dict[str, Any]]:
    started = time.perf_counter()
    summary = convert_site(raw, scratch / "data", site, recipe, workers=0)
    convert_s = time.perf_counter() - started
    structures = [{"name": structure.name, "values": [structure.value]} for structure in recipe.structures]
    data = {"dataset": recipe.dataset, "structures": structures, "max_images": images}
    study = Study.from_dict({"name": "benchmark", "held_out": [site], "data": data})
    rows = []
    for name in WAYS:
        opened = open_site(study, site, SiteSettings(data_root=scratch / "data"))  # anew: nothing is decoded yet
        rows.append(_row(name, summary.slices, summary.mb, convert_s, WAYS[name](opened, size_px, MASK_PX, scratch)))
    return rows


def _papers(recipe: Recipe, raw: Path, site: str, size_px: int, images: int, scratch: Path) -> dict[str, Any]:
    folder = scratch / "arrays"
    folder.mkdir()
    started, count = time.perf_counter(), 0
    for case in recipe.find(raw, site).cases.values():
        for image, label in recipe.read(case).slices:
            pixels = Image.fromarray(image).convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR)
            mask = Image.fromarray(label).resize((MASK_PX, MASK_PX), Image.Resampling.NEAREST)
            np.save(folder / f"{count:05d}_image.npy", np.asarray(pixels))
            np.save(folder / f"{count:05d}_mask.npy", np.asarray(mask))
            count += 1
    convert_s = time.perf_counter() - started
    mb = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return _row("paper", count, mb, convert_s, Way(lambda: _load(folder, min(images, count)), lambda: 0.0, "-"))


def _load(folder: Path, count: int) -> Iterator[Any]:
    for index in range(count):
        image = np.load(folder / f"{index:05d}_image.npy", allow_pickle=False)
        mask = np.load(folder / f"{index:05d}_mask.npy", allow_pickle=False)
        yield torch.from_numpy(image).permute(2, 0, 1).float() / 255, torch.from_numpy(mask)[None].float()


def _row(name: str, slices: int, mb: float, convert_s: float, way: Way) -> dict[str, Any]:
    rates, count = [], 0
    for _ in range(2):
        started = time.perf_counter()
        count = sum(1 for _ in way.epoch())
        rates.append(round(count / (time.perf_counter() - started), 1))
    return {
        "way": name,
        "slices": slices,
        "images": count,
        "mb_per_1000": round(1000 * mb / slices, 1),
        "convert_s_per_1000": round(1000 * convert_s / slices, 1),
        "kept_mb_per_1000": round(1000 * way.kept_mb() / count, 1),
        "kept_in": way.kept_in,
        "images_per_s_first_epoch": rates[0],
        "images_per_s_later": rates[1],
    }
