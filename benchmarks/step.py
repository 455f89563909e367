"""A training step, a prediction, an epoch with a kept prefix: each path in processes of its own, one after another in
turn, so that a machine's drift hits them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedfms.report.cost.timing import Timing, apart
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study, TrainSpec
from fedfms.training.build import outline

PATHS: Mapping[str, SiteSettings] = {
    "plain": SiteSettings(attention="plain", processor="plain"),
    "plain-tuned": SiteSettings(attention="plain"),  # with what `fedfms.training.processor` does
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

    `times_faster` and `peak_share` are against the oracle, the first case if it is not among them, of the same run.
    """
    found: dict[Case, list[Timing]] = {case: [] for case in cases}
    for _ in range(repeats):
        for case, timings in found.items():
            made = replace(study, train=replace(study.train, precision=case.dtype))
            settings = replace(PATHS[case.path], device=device)
            timings.append(apart(made, settings, steps, None, prefix=case.prefix, training=training))
    first = next((case for case in cases if (case.path, case.dtype) == ORACLE), cases[0])
    key = "step_s" if training else "predict_s"
    trained = sum(p.numel() for p in outline(study).parameters().values())
    common = {
        "method": study.method,
        "backbone": study.model.backbone,
        "size_px": study.model.input_px,
        "batch": study.train.batch_size if training else 1,
    }
    return [
        {**common, **_row(case, timings, found[first], key), "steps": steps * repeats, "trained_parameters": trained}
        for case, timings in found.items()
    ]


def _row(case: Case, timings: Sequence[Timing], oracle: Sequence[Timing], key: str) -> dict[str, Any]:
    seconds, peak = _median(timings, key), _median(timings, "peak_mib")
    return {
        "path": "fast" if PATHS[case.path].attention != "plain" else case.path.removesuffix("-checkpointed"),
        "checkpointing": PATHS[case.path].checkpointing,
        "dtype": case.dtype,
        "prefix": "kept" if case.prefix else "-",
        key: round(seconds, 4),
        "peak_mb": round(peak),
        "base_mb": round(_median(timings, "base_mib")),
        "times_faster": round(_median(oracle, key) / seconds, 2),
        "peak_share": round(peak / _median(oracle, "peak_mib"), 3),
    }


def _median(timings: Sequence[Timing], key: str) -> float:
    return statistics.median(getattr(timing, key) for timing in timings)
