"""A table so small that a run of it takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedfms.experiments.plan import Cell, Grid
from fedfms.experiments.runner import run_cells
from fedfms.settings import SiteSettings

SMALL = (
    "data.phantom_images=12", "data.phantom_px=64", "model.input_px=64", "train.rounds=3", "train.local_epochs=1",
    "data.augment=none", "federation.min_cases=1",
)  # fmt: skip


def grid(**values: Any) -> Grid:
    """Two methods on three phantom sites, each held out once."""
    return Grid(**{"study": "phantom", "methods": ("fedmsa", "local"), "overrides": SMALL, **values})


def run(cells: list[Cell], out: Path, engine: str = "reference", jobs: int = 2) -> dict[str, str]:
    """Run them as the command does, one thread each."""
    settings = SiteSettings(cache=out / "cache", threads=1)
    return run_cells(cells, out, settings, engine=engine, jobs=jobs, told=lambda done: None)
