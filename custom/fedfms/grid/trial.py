"""What a table will take, before it starts: bytes by the methods' own rules, hours from a step that is timed here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedfms.data import open_site
from fedfms.grid.plan import Cell
from fedfms.methods import METHODS
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.prefix import PrefixCache
from fedfms.training.traffic import plan
from fedfms.training.trainer import Trainer

_STEPS = 3  # the first fills caches, of the others the quicker one counts


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
    """Seconds to train on a slice and to predict one, of random pixels, in batches of the study's size."""
    built = build(study, settings)
    size, model = study.train.batch_size, built.model
    images = torch.rand(size, 3, model.input_px, model.input_px)
    masks = (torch.rand(size, len(study.data.structures), model.mask_px, model.mask_px) > 0.5).float()
    batch = {"image": images, "label": masks, "key": [f"{index:064d}" for index in range(size)]}
    with tempfile.TemporaryDirectory() as folder:
        kept = study.data.cache and PrefixCache.applies(built)
        trainer = Trainer(built, study.train, study.structure_names, PrefixCache(built, Path(folder)) if kept else None)
        augmented = study.data.augment != "none" or study.data.crop_px is not None
        optimizer, shared = trainer.optimizer(0), built.shared()
        train = _quickest(lambda: trainer.epoch([batch], optimizer, shared, cached=not augmented))
        score = _quickest(lambda: trainer.score([batch]))
    return train / size, score / size


def _quickest(step: Callable[[], object]) -> float:
    took = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return min(took[1:])


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
