"""What a table will take, before it starts: bytes by the methods' own rules, hours from a step that is timed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedfms.data import open_site
from fedfms.errors import SettingsError, TrainingError
from fedfms.experiments.plan import Cell
from fedfms.methods import METHODS
from fedfms.reporting.cost.timing import apart
from fedfms.reporting.cost.traffic import plan
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study
from fedfms.training.build import check_weights

_STEPS = 3  # the first fills caches; the one in the middle counts
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Estimate:
    """Of all runs together."""

    runs: int
    rounds: int
    sent_mb: float
    starts: Mapping[str, int]  # runs by what they start from
    seconds: float | None  # one run after another; None where a step could not be timed
    fault: str = ""  # why not

    def text(self, jobs: int) -> str:
        """One line for people."""
        told = f"{self.runs} runs, {self.rounds} rounds, {self._start()}; "
        told += f"a federation would send {self.sent_mb:,.1f} MB; "
        if self.seconds is None:
            return f"{told}how long it takes is not known: {self.fault}"
        hours = self.seconds / jobs / 3600
        return f"{told}about {f'{hours:.1f} h' if hours >= 1 else f'{hours * 60:.0f} min'} here, {jobs} at once"

    def _start(self) -> str:
        if len(self.starts) == 1:
            return f"from {next(iter(self.starts))}"
        return ", ".join(f"{runs} from {start}" for start, runs in self.starts.items())


def count(cells: Sequence[Cell]) -> Estimate:
    """What all runs will do, by the methods' own rules: no data are opened, nothing is timed.

    Raises:
        StudyError: a model, a method or its options cannot be.
    """
    sent: dict[tuple[str, str, int], float] = {}
    total = 0.0
    for cell in cells:
        kind = cell.method, cell.variant, len(cell.study.sites)
        if kind not in sent:
            sent[kind] = 0.0 if METHODS[cell.method].centralised else plan(cell.study).total_mb
        total += sent[kind]
    rounds = sum(cell.study.train.rounds for cell in cells)
    starts = Counter(cell.study.model.initial_weights for cell in cells)
    return Estimate(len(cells), rounds, total, starts, None, "nothing was timed")


def check_starts(cells: Sequence[Cell], settings: SiteSettings, *, must: bool) -> list[str]:
    """See that the files of weights that the runs start from fit their models, each pair once; what is told of others.

    Args:
        must: the runs are about to begin: a file that is not here is a fault.

    Raises:
        FedfmsError: a file does not fit, or is not here: better now than after hours.
    """
    seen: set[ModelSpec] = set()
    notes = []
    for cell in cells:
        name = cell.study.model.checkpoint
        if cell.study.model in seen or name is None:
            continue
        seen.add(cell.study.model)
        if settings.checkpoints is None or not (settings.checkpoints / name).is_file():
            do = "name it: --checkpoint FILE, or its folder in this site's settings, `checkpoints: FOLDER`"
            absent = SettingsError(f"{name}, which runs start from, is not here", do=do)
            if must:
                raise absent
            notes.append(absent.line())
        else:
            check_weights(cell.study, settings)
    return list(dict.fromkeys(notes))


def estimate(cells: Sequence[Cell], settings: SiteSettings, told: Callable[[str], None]) -> Estimate:
    """Time a step and a prediction of each method and variant, and count what all runs will do.

    Args:
        told: called with the name of what is timed next.

    Raises:
        FedfmsError: a study or a site's data cannot be used: better now than after hours.
    """
    counted, counts = count(cells), _Counts(settings)
    slices = [_slices(cell.study, counts) for cell in cells]
    speeds: dict[tuple[str, str], tuple[float, float]] = {}
    seconds = 0.0
    for cell, (trained, scored) in zip(cells, slices, strict=True):
        kind = cell.method, cell.variant
        if kind not in speeds:
            told(" ".join(part for part in kind if part))
            try:
                speeds[kind] = seconds_a_slice(cell.study, settings)
            except TrainingError as error:
                return replace(counted, fault=error.line())
        train_s, score_s = speeds[kind]
        seconds += trained * train_s + scored * score_s
    return replace(counted, seconds=seconds, fault="")


def seconds_a_slice(study: Study, settings: SiteSettings) -> tuple[float, float]:
    """Seconds to train on a slice, in batches of the study's size, and to predict one; pixels and weights are random.

    Raises:
        TrainingError: it could not be measured; there is too little memory, for instance.
    """
    kept = study.data.cache and study.data.augment == "none" and study.data.crop_px is None
    bare = replace(study, model=replace(study.model, checkpoint=None, checkpoint_sha256=None))
    nowhere = replace(settings, data_root=None, checkpoints=None, cache=None)
    timing = apart(bare, nowhere, _STEPS, _TIMEOUT_S, prefix=kept)
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


def _slices(study: Study, counts: _Counts) -> tuple[int, int]:
    """How often one run trains on a slice, and how often it scores one, the final and the best model among them."""
    trained, scored = (sum(of) for of in zip(*(counts(study, site) for site in study.sites), strict=True))
    scored += sum(counts(study, site)[1] for site in study.held_out)
    models = 2 if study.data.protocol == "held-out" else 1
    return study.train.rounds * study.train.local_epochs * trained, (study.train.rounds + models) * scored
