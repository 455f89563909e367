"""Seconds and memory to aggregate a round's updates at the server, and the seconds to read them once."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.step import make_study
from fedfms.federation.memory_mapped import memory_mapped
from fedfms.methods import ServerState, Tensors, Update, make_method
from fedfms.reporting.cost.traffic import shared_tensors
from fedfms.training.build import build_on_meta


def measure(method: str, backbone: str, sites: int, repeats: int) -> list[dict[str, Any]]:
    """Two rows: updates in memory, and updates memory-mapped from disk (in the system's page cache).

    Seconds are medians over `repeats`. Reading is torch's sum of each tensor with the same number of threads, and
    alternates with aggregation. `grown_mb`: MiB that aggregation adds to the process's anonymous memory, and the same
    in `copies` of the model.
    """
    like = shared_tensors(build_on_meta(make_study(method, backbone, 1024, 1)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for held in ("memory", "disk"):
            updates = list(_updates(like, sites, Path(folder) if held == "disk" else None))
            server = ServerState({name: torch.zeros_like(tensor) for name, tensor in updates[0].tensors.items()})
            aggregate = partial(make_method(method, {}).aggregate, updates, server)
            rows.append({"method": method, "backbone": backbone, "held": held} | _row(aggregate, updates, repeats))
            del updates, aggregate
    return rows


def _updates(like: Tensors, sites: int, folder: Path | None) -> Iterator[Update]:
    stream = torch.Generator().manual_seed(0)
    for index in range(sites):
        made = {name: torch.randn(tensor.shape, generator=stream) for name, tensor in like.items()}
        if folder is not None:
            made = memory_mapped(((name, tensor.numpy()) for name, tensor in made.items()), folder)
        yield Update(f"site-{index:03d}", made, 100 + index)


def _row(aggregate: Callable[[], object], updates: Sequence[Update], repeats: int) -> dict[str, Any]:
    first = updates[0].tensors
    reads, aggregates, grown = [], [], 0
    for _ in range(repeats):
        reads.append(_seconds(lambda: [t.sum() for update in updates for t in update.tensors.values()]))
        with _MemoryWatch() as watch:
            aggregates.append(_seconds(aggregate))
        grown = max(grown, watch.grown)
    read_s, aggregate_s = statistics.median(reads), statistics.median(aggregates)
    copy = sum(tensor.nbytes for tensor in first.values())
    return {
        "sites": len(updates),
        "parameters": sum(tensor.numel() for tensor in first.values()),
        "threads": torch.get_num_threads(),
        "read_s": round(read_s, 3),
        "aggregate_s": round(aggregate_s, 3),
        "times_reading": round(aggregate_s / read_s, 2),
        "grown_mb": round(grown / 2**20, 1),
        "copies": round(grown / copy, 2),
    }


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class _MemoryWatch(threading.Thread):
    """Samples the process's anonymous memory; `grown`: bytes by which it exceeded its initial value at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.grown = 0
        self._before, self._ended = _anonymous_bytes(), threading.Event()

    def __enter__(self) -> _MemoryWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.grown = max(self.grown, _anonymous_bytes() - self._before)


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs; on systems other than Linux, all its memory."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
