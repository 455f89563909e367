"""A round's mean at the server, beside the time that it takes to read the same updates once."""

from __future__ import annotations

import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.step import study_of
from fedfms.methods import Server, Tensors, Update, compiled, make_method
from fedfms.training.build import outline
from fedfms.training.spool import spooled
from fedfms.training.traffic import shared_tensors


def measure(method: str, backbone: str, sites: int, repeats: int) -> list[dict[str, Any]]:
    """Rows by path, of updates that lie in memory, and that a server has put by on disk and the system's cache holds.

    `plain` is torch's operations, `fast` what was compiled at installation, if it was. Seconds are medians of
    `repeats`; reading, which is torch's sum of each tensor by as many threads, alternates with combining. `grown_mb`:
    MiB of the process's own memory (no file's) while it combines, in `copies` of the model.
    """
    like = shared_tensors(outline(study_of(method, backbone, 1024, 1)))
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for held in ("memory", "disk"):
            updates = list(_updates(like, sites, Path(folder) if held == "disk" else None))
            for path, combine in _paths(method, updates).items():
                row = {"method": method, "backbone": backbone, "held": held, "path": path}
                rows.append(row | _row(combine, updates, repeats))
            del updates
    return rows


def _paths(method: str, updates: Sequence[Update]) -> dict[str, Callable[[], object]]:
    server = Server({name: torch.zeros_like(tensor) for name, tensor in updates[0].tensors.items()})

    def fast() -> object:
        return make_method(method, {}).combine(updates, server)

    def plain() -> object:
        with mock.patch.object(compiled, "BUILT", False):
            return fast()

    return {"plain": plain, "fast": fast} if compiled.BUILT else {"plain": plain}


def _updates(like: Tensors, sites: int, folder: Path | None) -> Iterator[Update]:
    stream = torch.Generator().manual_seed(0)
    for index in range(sites):
        made = {name: torch.randn(tensor.shape, generator=stream) for name, tensor in like.items()}
        if folder is not None:
            made = spooled(((name, tensor.numpy()) for name, tensor in made.items()), folder)
        yield Update(f"site-{index:03d}", made, 100 + index)


def _row(combine: Callable[[], object], updates: Sequence[Update], repeats: int) -> dict[str, Any]:
    first = updates[0].tensors
    reads, combines, grown = [], [], 0
    for _ in range(repeats):
        reads.append(_seconds(lambda: [t.sum() for update in updates for t in update.tensors.values()]))
        with _Watch() as watch:
            combines.append(_seconds(combine))
        grown = max(grown, watch.grown)
    read_s, combine_s = statistics.median(reads), statistics.median(combines)
    copy = sum(tensor.nbytes for tensor in first.values())
    return {
        "sites": len(updates),
        "parameters": sum(tensor.numel() for tensor in first.values()),
        "threads": torch.get_num_threads(),
        "read_s": round(read_s, 3),
        "combine_s": round(combine_s, 3),
        "times_reading": round(combine_s / read_s, 2),
        "grown_mb": round(grown / 2**20, 1),
        "copies": round(grown / copy, 2),
    }


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class _Watch(threading.Thread):
    """The most memory of its own that the process has while this is on, beside what it had before; bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.grown = 0
        self._before, self._ended = anonymous(), threading.Event()

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.grown = max(self.grown, anonymous() - self._before)


def anonymous() -> int:
    """Bytes of this process that no file holds; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0
