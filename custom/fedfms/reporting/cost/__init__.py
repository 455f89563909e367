"""What a method costs before it runs: parameters, bytes, FLOPs, memory and seconds, beside the papers' figures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from fedfms.errors import TrainingError
from fedfms.machine import free_memory, machine
from fedfms.methods import METHODS, make_method, resolve_study
from fedfms.reporting.cost import published
from fedfms.reporting.cost.live import estimate
from fedfms.reporting.cost.timing import Timing, apart
from fedfms.reporting.cost.traffic import Traffic, plan
from fedfms.reporting.cost.work import Work, step_work
from fedfms.settings import SiteSettings
from fedfms.study import Study

FORMAT = 1
_MARGIN = 1.5  # what a step of ViT-B took at most of its estimate: one slice is counted, and what libraries hold is not
_PYTHON = 400 * 2**20  # what a process has before it builds a model
NO_CARD = (
    "There is no card here: the papers' GPU memory and seconds have no figure of ours beside them; memory is worked "
    "out from shapes, and what is measured is of this processor."
)
NOT_TOLD = (
    "What this does not know: what a method does before training (FedALA's weights, FedHEAL's and FedDBE's "
    "statistics), reading and augmenting images, the network's speed, and FLARE's own bytes and seconds."
)
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Timed:
    """How rows are timed; `device` as torch names it, "" for the card where there is one."""

    steps: int = 3
    timeout_s: float = 600.0
    device: str = ""


def make_cost(studies: Sequence[Study], timed: Timed | None, say: Say = lambda text: None) -> dict[str, Any]:
    """Rows by study (of one data set, by several methods), the papers' figures, and the machine; plain, for JSON.

    Args:
        timed: None leaves seconds and measured memory out.
        say: is told what is being done.

    Raises:
        StudyError: a model or a method that cannot be. A row that cannot be timed gets a note instead.
    """
    rows, papers, notes = [], [], []
    for given in studies:
        study = resolve_study(given, make_method(given.method, given.method_options))
        say(f"{study.method}: counting")
        settings = SiteSettings(device="" if timed is None else timed.device)
        work, traffic, timing = step_work(study), plan(study), None
        need = estimate(study, settings)
        if timed is not None:
            say(f"{study.method}: {timed.steps} steps of batch {study.train.batch_size}, in a process of its own")
            try:
                _check_room(need, settings)
                timing = apart(study, settings, timed.steps, timed.timeout_s)
            except TrainingError as error:
                notes.append(f"{_label(study)}: {error.line()}")
        rows.append(_row(study, traffic, work, need, timing))
        papers += _papers(study, traffic, work, timing)
    here = machine()
    known = [NO_CARD] if here["accelerator"] is None else []
    return {
        "format": FORMAT,
        "study": studies[0].name,
        "machine": here,
        "rows": rows,
        "papers": sorted(papers, key=lambda row: str(row["source"])),
        "notes": [*notes, *known, NOT_TOLD],
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
        "backward_tflop": work.backward / 1e12,
        "step_tflop": (work.forward + work.backward) / 1e12,
        "slice_tflop": (work.forward + work.backward) / batch / 1e12,
        "by_layers_tflop": work.by_layers / 1e12,
        "state_mib": work.state_bytes / 2**20,
        "need_mib": need / 2**20,
        "device": timing.device if timing else None,
        "step_s": timing.step_s if timing else None,
        "predict_s": timing.predict_s if timing else None,
        "peak_mib": timing.peak_mib if timing else None,
        "base_mib": timing.base_mib if timing else None,
    }


def _papers(study: Study, traffic: Traffic, work: Work, timing: Timing | None) -> list[dict[str, Any]]:
    on_card = timing is not None and timing.device != "cpu"
    found = []
    for table in published.tables():
        rows = published.rows_of(study, table)
        if not rows:
            continue
        there = plan(published.in_setting(study, table))
        own = published.Own(
            trained=traffic.trained,
            sent=published.sent_over(there.up_mb * 1e6 / published.FLOAT32_BYTES, there.sites, there.rounds),
            by_layers=work.by_layers,
            predict_s=timing.predict_s if timing and on_card else None,
            card_mib=timing.peak_mib if timing and on_card else None,
        )
        found += [published.beside(study, table, row, own) for row in rows]
    return found


def _check_room(need: int, settings: SiteSettings) -> None:
    """A machine that swaps, or ends other processes, is no answer to what a step costs.

    Raises:
        TrainingError: a step on the processor needs more memory than is free.
    """
    free, need = free_memory(), round(_MARGIN * need) + _PYTHON
    if settings.torch_device.type == "cpu" and need > free:
        raise TrainingError(
            f"not measured: a step may take {need / 2**20:,.0f} MiB, {free / 2**20:,.0f} are free",
            do="--set train.batch_size=1, or a smaller input",
        )


def _label(study: Study) -> str:
    """As the command line takes it; a plan is a file of its own there."""
    options = [f":{key}={json.dumps(value)}" for key, value in study.method_options.items() if key != "plan"]
    return "".join([study.method, *options])
