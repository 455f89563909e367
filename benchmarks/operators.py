"""Where a step's seconds go: matrix products, which another order makes no fewer, and what is beside."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import PATHS, study_of
from fedfms.report.cost.timing import ready
from fedfms.training.processor import float32_products

# The beginnings of operators' names, the first that fits; what is left is "others".
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution", "aten::_slow_conv"),
    "softmax": ("aten::_softmax", "aten::softmax"),
    "fused attention": ("aten::_scaled_dot_product",),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::clone"),
    "sums and products by element": ("aten::add", "aten::mul", "aten::sum", "aten::sub", "aten::div"),
}
OTHERS = "others"


def measure(method: str, backbone: str, size_px: int, batch: int, paths: Sequence[str]) -> list[dict[str, Any]]:
    """A row a path and kind of operator: seconds on the processor of a second step, and their share of it.

    `rate`: of a matrix product of 4096 x 768 with 768 x 3072 on this machine, in GFLOP/s, measured beside it, as torch
    comes; `tuned_rate`: as `fedfms.training.processor` has it.
    """
    rates = {"rate": _rate()}
    with float32_products():
        rates["tuned_rate"] = _rate()
    in_turn = sorted(paths, key=lambda path: PATHS[path].tuned)  # what is tuned stays so in a process
    return [row | rates for path in in_turn for row in _rows(method, backbone, size_px, batch, path)]


def _rows(method: str, backbone: str, size_px: int, batch: int, path: str) -> list[dict[str, Any]]:
    made = ready(study_of(method, backbone, size_px, batch), replace(PATHS[path], device="cpu"))
    made.step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        made.step()
    seconds: dict[str, float] = defaultdict(float)
    for operator in seen.key_averages():
        seconds[kind_of(operator.key)] += operator.self_cpu_time_total / 1e6
    whole = sum(seconds.values())
    common = {"method": method, "backbone": backbone, "size_px": size_px, "batch": batch, "path": path}
    return [
        {**common, "operators": kind, "s": round(seconds[kind], 2), "share": round(seconds[kind] / whole, 3)}
        for kind in (*KINDS, OTHERS)
    ]


def kind_of(operator: str) -> str:
    """The kind of an operator by its name."""
    return next((kind for kind, names in KINDS.items() if operator.startswith(names)), OTHERS)


def _rate() -> float:
    left, right, best = torch.rand(4096, 768), torch.rand(768, 3072), float("inf")
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return round(2 * 4096 * 768 * 3072 / best / 1e9, 1)
