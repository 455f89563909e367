"""What a table will take, before it starts: bytes by the methods' own rules, hours from a step that is timed here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.data import open_site
from fedfms.grid.plan import Cell
from fedfms.methods import METHODS
from fedfms.report.cost.timing import measure
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.traffic import plan

_STEPS = 3  # the first fills caches; the one in the middle counts


@dataclass(frozen=True)
class Estimate:
    """Of all runs together."""

    runs: int
    rounds: int
    sent_mb: float
    seconds: float  # one run after another

    def text(self, jobs: int) -> str:
        """One line for people."""
        hours = self.seconds / jobs / 3600
        took = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
        return (
            f"{self.runs} runs, {self.rounds} rounds; a federation would send {self.sent_mb:,.1f} MB; about {took} "
            f"here, {jobs} at once"
        )


def estimate(cells: Sequence[Cell], settings: SiteSettings, told: Callable[[str], None]) -> Estimate:
    """Time a step and a prediction of each method and variant, and count what all runs will do.

    Args:
        told: called with the name of what is timed next.

    Raises:
        FedfmsError: a study, a checkpoint or a site's data cannot be used: better now than after hours.
    """
    counts = _Counts(settings)
    speeds: dict[tuple[str, str], tuple[float, float]] = {}
    seconds, sent = 0.0, 0.0
    for cell in cells:
        kind = cell.method, cell.variant
        if kind not in speeds:
            told(" ".join(part for part in kind if part))
            speeds[kind] = seconds_a_slice(cell.study, settings)
        seconds += _seconds(cell.study, speeds[kind], counts)
        if not METHODS[cell.method].centralised:
            sent += plan(cell.study).total_mb
    return Estimate(len(cells), sum(cell.study.train.rounds for cell in cells), sent, seconds)


def seconds_a_slice(study: Study, settings: SiteSettings) -> tuple[float, float]:
    """Seconds to train on a slice, in batches of the study's size, and to predict one; pixels are random."""
    kept = study.data.cache and study.data.augment == "none" and study.data.crop_px is None
    with tempfile.TemporaryDirectory() as folder:
        timing = measure(study, settings, _STEPS, Path(folder) if kept else None)
    return timing.step_s / study.train.batch_size, timing.predict_s


class _Counts:
    """Slices of each site by part; its data are opened once for all runs that split them alike."""

    def __init__(self, settings: SiteSettings) -> None:
        self._settings = settings
        self._known: dict[str, tuple[int, int]] = {}

    def __call__(self, study: Study, site: str) -> tuple[int, int]:
        """(slices to train on, slices that are scored)."""
        key = repr((study.data, study.seed, site, site in study.held_out))
        if key not in self._known:
            data = open_site(study, site, self._settings)
            self._known[key] = len(data.parts["train"]), len(data.parts[data.scored_part])
        return self._known[key]


def _seconds(study: Study, speed: tuple[float, float], counts: _Counts) -> float:
    """Of one run: its rounds, and the final and the best model scored at the end."""
    train_s, score_s = speed
    trained = scored = 0
    for site in study.sites:
        to_train, to_score = counts(study, site)
        trained, scored = trained + to_train, scored + to_score
    scored += sum(counts(study, site)[1] for site in study.held_out)
    models = 2 if study.data.protocol == "held-out" else 1
    rounds = study.train.rounds
    return rounds * study.train.local_epochs * trained * train_s + (rounds + models) * scored * score_s
