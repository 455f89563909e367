"""An experiment whose runs take seconds."""

from pathlib import Path
from typing import Any

from fedfms.errors import StudyError
from fedfms.experiments.plan import Experiment, Run
from fedfms.experiments.runner import Engine, execute_runs
from fedfms.schema import parse
from fedfms.settings import SiteSettings

SMALL = (
    "data.phantom_images=12", "data.phantom_px=64", "model.input_px=64", "train.rounds=3", "train.local_epochs=1",
    "data.augment=none", "federation.min_cases=1",
)  # fmt: skip


def experiment(**values: Any) -> Experiment:
    """Two methods on three phantom sites, each held out once."""
    raw = {"study": "phantom", "methods": ["fedmsa", "local"], "overrides": SMALL, **values}
    return parse(Experiment, raw, StudyError)


def execute(runs: list[Run], out: Path, engine: Engine = "in-process", jobs: int = 2) -> dict[str, str]:
    """Execute runs as the command does, with one thread each."""
    settings = SiteSettings(cache=out / "cache", threads=1)
    return execute_runs(runs, out, settings, engine=engine, jobs=jobs, progress=lambda done: None)
