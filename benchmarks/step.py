"""Training steps, predictions, and steps with a cached frozen prefix, measured by path.

Each measurement runs in its own process, and the paths alternate, so that a drift of the machine affects all of them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedfms.errors import TrainingError
from fedfms.reporting.cost.timing import Timing, measure_in_subprocess
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study, TrainSpec
from fedfms.training.build import build_on_meta

PATHS: Mapping[str, SiteSettings] = {
    "plain": SiteSettings(attention="plain", cpu_tuning=False),
    "plain-tuned": SiteSettings(attention="plain"),
    "fast": SiteSettings(),
    "checkpointed": SiteSettings(gradient_checkpointing=True),  # otherwise fast
    "plain-checkpointed": SiteSettings(attention="plain", cpu_tuning=False, gradient_checkpointing=True),
}
ORACLE = ("plain", "float32")


@dataclass(frozen=True)
class Case:
    """One row: a key of `PATHS`, a precision, whether a frozen prefix's outputs are cached, and `model.adapter_blocks`
    (None: as in the study).
    """

    path: str
    dtype: str
    prefix: bool = False
    blocks: str | None = None


def make_study(method: str, backbone: str, size_px: int, batch: int) -> Study:
    """A study of random images and weights."""
    model = ModelSpec(backbone=backbone, input_px=size_px)
    return Study("benchmark", method=method, model=model, train=TrainSpec(batch_size=batch))


def measure(
    study: Study, cases: Sequence[Case], *, steps: int, repeats: int, training: bool = True, device: str = ""
) -> list[dict[str, Any]]:
    """One row per case: medians over `repeats` processes, each the median of `steps`; memory in MiB.

    `peak_mb`: of the card on CUDA, else of the process; `base_mb`: of that, before the model was built. With
    `training`, `predict_s` is the prediction of one image by the same process, unless a prefix is cached.
    `times_faster` and `peak_share`: relative to the oracle, or to the first case if the oracle is not among the cases.
    A case that cannot be measured, mostly for lack of memory, has the reason in place of numbers.

    Raises:
        TrainingError: no case can be measured.
    """
    found: dict[Case, list[Timing]] = {case: [] for case in cases}
    failed: dict[Case, str] = {}
    for case in [*cases] * repeats:
        if case not in failed:
            made = _study_of(case, study)
            settings = replace(PATHS[case.path], device=device)
            try:
                timing = measure_in_subprocess(made, settings, steps, None, prefix=case.prefix, training=training)
                found[case].append(timing)
            except TrainingError as error:
                failed[case] = error.line()
    if len(failed) == len(cases):
        raise TrainingError(f"no row of {study.method} on {study.model.backbone} was measured: {failed[cases[0]]}")
    first = next((case for case in cases if (case.path, case.dtype) == ORACLE), cases[0])
    oracle = None if first in failed else _medians(found[first])
    common = {
        "method": study.method, "backbone": study.model.backbone, "size_px": study.model.input_px,
        "batch": study.train.batch_size if training else 1,
    }  # fmt: skip
    rows = []
    for case, timings in found.items():
        counts = {"steps": steps * repeats, "trained_parameters": trained_parameters(_study_of(case, study))}
        key = "step_s" if training else "predict_s"
        timed = [key] if case.prefix or not training else [key, "predict_s"]  # a step has predicted the cached outputs
        figures = {"failed": failed[case]} if case in failed else _figures(_medians(timings), oracle, timed) | counts
        rows.append({**common, **_named(case), **figures})
    return rows


def _study_of(case: Case, study: Study) -> Study:
    model = replace(study.model, adapter_blocks=case.blocks or study.model.adapter_blocks)
    return replace(study, model=model, train=replace(study.train, precision=case.dtype))


def trained_parameters(study: Study) -> int:
    """Number of trained parameters.

    Raises:
        StudyError: unknown or incompatible method and network.
    """
    return sum(parameter.numel() for parameter in build_on_meta(study).parameters().values())


def _named(case: Case) -> dict[str, Any]:
    settings = PATHS[case.path]
    return {
        "path": "fast" if settings.attention != "plain" else case.path.removesuffix("-checkpointed"),
        "checkpointing": settings.gradient_checkpointing,
        "dtype": case.dtype,
        "prefix": "cached" if case.prefix else "-",
        **({} if case.blocks is None else {"adapter_blocks": case.blocks}),
    }


def _figures(row: Mapping[str, float], oracle: Mapping[str, float] | None, timed: Sequence[str]) -> dict[str, Any]:
    """The numbers of a row.

    Args:
        timed: the measured seconds; the first ones are compared with the oracle's.
    """
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
