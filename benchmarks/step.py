"""A training step, a prediction, an epoch with a kept prefix: each path in processes of its own, one after another in
turn, so that a machine's drift hits them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedfms.errors import TrainingError
from fedfms.reporting.cost.timing import Timing, apart
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study, TrainSpec
from fedfms.training.build import build_on_meta

PATHS: Mapping[str, SiteSettings] = {
    "plain": SiteSettings(attention="plain", processor="plain"),
    "plain-tuned": SiteSettings(attention="plain"),  # with what `fedfms.training.cpu_tuning` does
    "fast": SiteSettings(),
    "checkpointed": SiteSettings(checkpointing=True),  # fast too
    "plain-checkpointed": SiteSettings(attention="plain", processor="plain", checkpointing=True),
}
ORACLE = ("plain", "float32")


@dataclass(frozen=True)
class Case:
    """One row: a key of `PATHS`, a precision, and whether a frozen prefix's outputs are kept."""

    path: str
    dtype: str
    prefix: bool = False


def study_of(method: str, backbone: str, size_px: int, batch: int, dtype: str = "float32") -> Study:
    """A study of random images and weights, with nothing but what a benchmark asks for."""
    model = ModelSpec(backbone=backbone, input_px=size_px)
    return Study("benchmark", method=method, model=model, train=TrainSpec(batch_size=batch, precision=dtype))


def measure(
    study: Study, cases: Sequence[Case], *, steps: int, repeats: int, training: bool = True, device: str = ""
) -> list[dict[str, Any]]:
    """A row a case: medians over `repeats` processes, each of which takes the median of `steps`; peak memory in MiB (of
    the process; of the card where there is one), and of that what was there before the model.

    With `training`, `predict_s` is the prediction of one image by the same process, where no prefix is kept.
    `times_faster` and `peak_share` are against the oracle, the first case if it is not among them, of the same run. A
    case that cannot be measured, mostly for want of memory, has the reason in place of figures, and the others go on.

    Raises:
        TrainingError: none can be measured.
    """
    found: dict[Case, list[Timing]] = {case: [] for case in cases}
    failed: dict[Case, str] = {}
    for _ in range(repeats):
        for case in cases:
            if case in failed:
                continue
            made = replace(study, train=replace(study.train, precision=case.dtype))
            settings = replace(PATHS[case.path], device=device)
            try:
                found[case].append(apart(made, settings, steps, None, prefix=case.prefix, training=training))
            except TrainingError as error:
                failed[case] = error.line()
    if len(failed) == len(cases):
        raise TrainingError(f"no row of {study.method} on {study.model.backbone} is measured: {failed[cases[0]]}")
    first = next((case for case in cases if (case.path, case.dtype) == ORACLE), cases[0])
    oracle = None if first in failed else _medians(found[first])
    common = {
        "method": study.method,
        "backbone": study.model.backbone,
        "size_px": study.model.input_px,
        "batch": study.train.batch_size if training else 1,
    }
    counts = {"steps": steps * repeats, "trained_parameters": trained_parameters(study)}
    rows = []
    for case, timings in found.items():
        key = "step_s" if training else "predict_s"
        timed = [key] if case.prefix or not training else [key, "predict_s"]  # what is kept was predicted by a step
        figures = {"failed": failed[case]} if case in failed else _figures(_medians(timings), oracle, timed) | counts
        rows.append({**common, **_named(case), **figures})
    return rows


def trained_parameters(study: Study) -> int:
    """How many numbers a study trains.

    Raises:
        StudyError: its method and network do not go together.
    """
    return sum(parameter.numel() for parameter in build_on_meta(study).parameters().values())


def _named(case: Case) -> dict[str, Any]:
    return {
        "path": "fast" if PATHS[case.path].attention != "plain" else case.path.removesuffix("-checkpointed"),
        "checkpointing": PATHS[case.path].checkpointing,
        "dtype": case.dtype,
        "prefix": "kept" if case.prefix else "-",
    }


def _figures(row: Mapping[str, float], oracle: Mapping[str, float] | None, timed: Sequence[str]) -> dict[str, Any]:
    """`timed`: what was timed; the first is what counts."""
    return {
        **{key: round(row[key], 4) for key in timed},
        "peak_mb": round(row["peak_mib"]),
        "base_mb": round(row["base_mib"]),
        "times_faster": None if oracle is None else round(oracle[timed[0]] / row[timed[0]], 2),
        "peak_share": None if oracle is None else round(row["peak_mib"] / oracle["peak_mib"], 3),
    }


def _medians(timings: Sequence[Timing]) -> dict[str, float]:
    keys = ("step_s", "predict_s", "peak_mib", "base_mib")
    return {key: statistics.median(getattr(timing, key) for timing in timings) for key in keys}
