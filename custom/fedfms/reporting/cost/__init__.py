"""The cost of methods before they run: parameters, bytes, FLOPs, memory and seconds, with the papers' figures."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from fedfms.errors import TrainingError
from fedfms.machine import free_memory, machine
from fedfms.methods import METHODS, make_method, resolve_study
from fedfms.reporting.cost import published
from fedfms.reporting.cost.step import Work, estimate, step_work
from fedfms.reporting.cost.timing import Timing, measure_in_subprocess
from fedfms.reporting.cost.traffic import Traffic, plan_traffic
from fedfms.settings import SiteSettings
from fedfms.study import Study

FORMAT = 1
_MARGIN = 1.5  # upper bound of measured / estimated memory of a step of ViT-B; libraries' memory is not estimated
_PYTHON = 400 * 2**20  # bytes of a process before it builds a model
NO_GPU = (
    "There is no GPU here, so the papers' GPU memory and seconds have no counterpart; memory is estimated from shapes, "
    "and measurements are of this CPU."
)
NOT_COVERED = (
    "Not covered: what a method does before training (FedALA's weights, FedHEAL's and FedDBE's statistics), reading "
    "and augmenting images, the network's speed, and FLARE's own bytes and seconds."
)
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Timed:
    """How to time methods; `device` in torch's notation, "": the GPU if there is one."""

    steps: int = 3
    timeout_s: float = 600.0
    device: str = ""


def make_cost(studies: Sequence[Study], timed: Timed | None, progress: Progress = lambda text: None) -> dict[str, Any]:
    """A row per study (of one data set, with several methods), the papers' figures, and the machine; plain, for JSON.

    Args:
        timed: None omits seconds and measured memory.
        progress: called with a description of each step.

    Raises:
        StudyError: a model or a method is not valid. A study that cannot be timed gets a note instead.
    """
    rows, papers, notes = [], [], []
    for given in studies:
        study = resolve_study(given, make_method(given.method, given.method_options))
        progress(f"{study.method}: counting")
        settings = SiteSettings(device="" if timed is None else timed.device)
        work, traffic, timing = step_work(study), plan_traffic(study), None
        need = estimate(study, settings)
        if timed is not None:
            progress(f"{study.method}: {timed.steps} steps of batch {study.train.batch_size}, in a new process")
            try:
                _check_memory(need, settings)
                timing = measure_in_subprocess(study, settings, timed.steps, timed.timeout_s)
            except TrainingError as error:
                notes.append(f"{_label(study)}: {error.line()}")
        rows.append(_row(study, traffic, work, need, timing))
        papers += _papers(study, traffic, work, timing)
    here = machine()
    return {
        "format": FORMAT,
        "study": studies[0].name,
        "machine": here,
        "rows": rows,
        "papers": sorted(papers, key=lambda row: str(row["source"])),
        "notes": [*notes, *([NO_GPU] if here["accelerator"] is None else []), NOT_COVERED],
    }


def _row(study: Study, traffic: Traffic, work: Work, need: int, timing: Timing | None) -> dict[str, Any]:
    pooled = METHODS[study.method].centralised
    batch, visits = study.train.batch_size, traffic.sites * traffic.rounds
    up_mb, down_mb = (None, None) if pooled else (traffic.up_mb, traffic.down_mb)
    return {
        "method": _label(study),
        "backbone": study.model.backbone,
        "input_px": study.model.input_px,
        "structures": len(study.data.structures),
        "batch": batch,
        "parameters": traffic.parameters,
        "trained": traffic.trained,
        "trained_mb": traffic.trained * published.FLOAT32_BYTES / 1e6,
        "trained_mib": traffic.trained * published.FLOAT32_BYTES / 2**20,
        "shared": None if pooled else traffic.shared,
        "sites": traffic.sites,
        "rounds": traffic.rounds,
        "up_mb": up_mb,
        "down_mb": down_mb,
        "study_up_mb": None if up_mb is None else up_mb * visits,
        "study_down_mb": None if down_mb is None else down_mb * visits,
        "study_mb": None if pooled else traffic.total_mb,
        "forward_tflop": work.forward / 1e12,
        "cached_tflop": work.cached / 1e12,
        "backward_tflop": work.backward / 1e12,
        "step_tflop": (work.forward + work.backward) / 1e12,
        "slice_tflop": (work.forward + work.backward) / batch / 1e12,
        "by_layers_tflop": work.by_layers / 1e12,
        "state_mib": work.state_bytes / 2**20,
        "need_mib": need / 2**20,
        **{key: getattr(timing, key, None) for key in ("device", "step_s", "predict_s", "peak_mib", "base_mib")},
    }


def _papers(study: Study, traffic: Traffic, work: Work, timing: Timing | None) -> list[dict[str, Any]]:
    found = []
    for table in published.tables():
        if not (rows := published.rows_of(study, table)):
            continue
        there = plan_traffic(published.in_setting(study, table.setting))
        sent = published.sent_over(there.up_mb * 1e6 / published.FLOAT32_BYTES, there.sites, there.rounds)
        ours = {"trained": traffic.trained, "sent": sent, "by_layers": work.by_layers}
        if timing is not None and timing.device != "cpu":
            ours |= {"predict_s": timing.predict_s, "gpu_mib": timing.peak_mib}
        found += [published.compared(study, table, row, ours) for row in rows]
    return found


def _check_memory(need: int, settings: SiteSettings) -> None:
    """Do not time a step on a machine that would swap, or end other processes.

    Raises:
        TrainingError: a step on the CPU needs more memory than is free.
    """
    free, need = free_memory(), round(_MARGIN * need) + _PYTHON
    if settings.torch_device.type == "cpu" and need > free:
        raise TrainingError(
            f"not measured: a step may take {need / 2**20:,.0f} MiB, {free / 2**20:,.0f} are free",
            do="--set train.batch_size=1, or a smaller input",
        )


def _label(study: Study) -> str:
    """Method and options as on the command line, without nnU-Net's plan, which is a file there."""
    options = [f":{key}={json.dumps(value)}" for key, value in study.method_options.items() if key != "plan"]
    return "".join([study.method, *options])
