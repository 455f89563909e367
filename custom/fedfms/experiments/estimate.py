"""The cost of an experiment before it starts: bytes from the methods' rules, hours from a step timed here."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedfms.data import open_site
from fedfms.errors import SettingsError, TrainingError
from fedfms.experiments.plan import Run
from fedfms.methods import METHODS
from fedfms.reporting.cost.timing import measure_in_subprocess
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study
from fedfms.training.build import check_weights
from fedfms.units import duration_text

_STEPS = 3  # the first fills caches; the median counts
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Estimate:
    """The cost of all runs together."""

    runs: int
    rounds: int
    sent_mb: float
    initial_weights: Mapping[str, int]
    """Number of runs by initial weights."""
    seconds: float | None
    """Of all runs, one after another; None if a step could not be timed."""
    error: str = ""
    """Why a step could not be timed."""

    def text(self, jobs: int) -> str:
        """One line for people."""
        weights = [f"{runs} from {start}" for start, runs in self.initial_weights.items()]
        start = ", ".join(weights) if len(weights) > 1 else f"from {next(iter(self.initial_weights))}"
        text = f"{self.runs} runs, {self.rounds} rounds, {start}; a federation would send {self.sent_mb:,.1f} MB; "
        if self.seconds is None:
            return f"{text}duration unknown: {self.error}"
        duration = duration_text(self.seconds / jobs)
        return f"{text}about {duration} on this machine, {jobs} in parallel"


def count(runs: Sequence[Run]) -> Estimate:
    """The cost of all runs without opening data or timing a step.

    Raises:
        StudyError: an invalid model, method or option.
    """
    sent_mb: dict[tuple[str, str, int], float] = {}
    total_mb = 0.0
    for run in runs:
        kind = run.key.method, run.key.variant, len(run.study.sites)
        if kind not in sent_mb:
            sent_mb[kind] = 0.0 if METHODS[run.key.method].centralised else plan_traffic(run.study).total_mb
        total_mb += sent_mb[kind]
    rounds = sum(run.study.train.rounds for run in runs)
    weights = Counter(run.study.model.initial_weights for run in runs)
    return Estimate(len(runs), rounds, total_mb, weights, None, "no step was timed")


def check_initial_weights(runs: Sequence[Run], settings: SiteSettings, *, required: bool) -> list[str]:
    """Check that the weight files fit the models of the runs; returns a note for each missing file.

    Args:
        required: a missing file is an error.

    Raises:
        FedfmsError: a file does not fit its model, or is missing.
    """
    seen: set[ModelSpec] = set()
    notes = []
    for run in runs:
        name = run.study.model.checkpoint
        if run.study.model in seen or name is None:
            continue
        seen.add(run.study.model)
        if settings.checkpoints is None or not (settings.checkpoints / name).is_file():
            do = "use --checkpoint FILE, or set its folder in this site's settings, `checkpoints: FOLDER`"
            missing = SettingsError(f"initial weights {name} not found", do=do)
            if required:
                raise missing
            notes.append(missing.line())
        else:
            check_weights(run.study, settings)
    return list(dict.fromkeys(notes))


def estimate(runs: Sequence[Run], settings: SiteSettings, progress: Callable[[str], None]) -> Estimate:
    """The cost of all runs, with hours from a timed step and prediction of each method and variant.

    Args:
        progress: called with the name of what is timed next.

    Raises:
        FedfmsError: a study or a site's data cannot be used.
    """
    counted, known = count(runs), dict[str, tuple[int, int]]()
    slices = [_count_slices(run.study, settings, known) for run in runs]  # before timing: it checks all data
    speeds: dict[tuple[str, str], tuple[float, float]] = {}
    seconds = 0.0
    for run, (trained, scored) in zip(runs, slices, strict=True):
        kind = run.key.method, run.key.variant
        if kind not in speeds:
            progress(" ".join(part for part in kind if part))
            try:
                speeds[kind] = seconds_per_slice(run.study, settings)
            except TrainingError as error:
                return replace(counted, error=error.line())
        train_s, score_s = speeds[kind]
        seconds += trained * train_s + scored * score_s
    return replace(counted, seconds=seconds, error="")


def seconds_per_slice(study: Study, settings: SiteSettings) -> tuple[float, float]:
    """Seconds to train on a slice, in batches of the study's size, and to predict one; pixels and weights are random.

    Raises:
        TrainingError: the step could not be timed, for example for lack of memory.
    """
    cached = study.data.cache and study.data.augment == "none" and study.data.crop_px is None
    bare = replace(study, model=replace(study.model, checkpoint=None, checkpoint_sha256=None))
    no_data = replace(settings, data_root=None, checkpoints=None, cache=None)
    timing = measure_in_subprocess(bare, no_data, _STEPS, _TIMEOUT_S, prefix=cached)
    return timing.step_s / study.train.batch_size, timing.predict_s


def _count_slices(study: Study, settings: SiteSettings, known: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """(slices trained on, slices scored) over a whole run, including its final and best models.

    Args:
        known: (slices for training, for scoring) by data, seed and site, so that runs with the same split open a
            site's data once.
    """
    trained = scored = 0
    for site in (*study.sites, *study.held_out):
        key = repr((study.data, study.seed, site, site in study.held_out))
        if key not in known:
            data = open_site(study, site, settings)
            known[key] = len(data.parts["train"]), len(data.parts[data.scored_part])
        trained += known[key][0] if site in study.sites else 0
        scored += known[key][1]
    models = 2 if study.data.protocol == "held-out" else 1
    return study.train.rounds * study.train.local_epochs * trained, (study.train.rounds + models) * scored
