"""Twenty sites of a toy model for thirty rounds in the reference loop, with faults drawn from a seed."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedfms.errors import TrainingError
from fedfms.federation.gate import Message
from fedfms.federation.inprocess import CompletedRound, Post, rounds
from fedfms.methods import Tensors, Update
from fedfms.rng import rng
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.result import RoundResult

from ..methods.common import study

SITES = tuple(f"site-{index:02d}" for index in range(20))
ROUNDS, NEEDED = 30, 8
FAULTS = ("nan", "shape", "missing", "replay", "huge", "duplicate", "lost")


class ToySite:
    """Moves every tensor a little towards 1, with noise of its own; no image, no network."""

    link = None

    def __init__(self, study: Study, name: str, *_: Any) -> None:
        self.study, self.name = study, name

    def train_round(self, round_: int, received: Tensors) -> RoundResult:
        stream = rng(self.study.seed, self.name, round_, "toy")
        if _fault(self.name, round_) == "missing":
            raise TrainingError("it is switched off", where=f"site {self.name}, round {round_}")
        noise = {name: stream.normal(0, 1e-3, tensor.shape) for name, tensor in received.items()}
        tensors = {
            name: tensor + 0.1 * (1 - tensor) + torch.from_numpy(noise[name].astype(np.float32))
            for name, tensor in received.items()
        }
        return RoundResult(Update(self.name, tensors, 10 + len(self.name)), None, None, 0.0)


def _fault(site: str, round_: int) -> str:
    """What is wrong with a site in a round; with about one in four something is."""
    stream = rng(7, site, round_, "fault")
    return str(stream.choice(FAULTS)) if stream.random() < 0.25 else ""


class BadPost:
    """What becomes of a message by the site's fault of that round."""

    def __init__(self) -> None:
        self._before: dict[str, Message] = {}

    def __call__(self, message: Message) -> Iterable[Message]:
        fault, before = _fault(message.sender, message.rounds[0]), self._before.get(message.sender)
        self._before[message.sender] = message
        first = next(iter(message.arrays))
        changes = {
            "nan": {first: np.full_like(message.arrays[first], np.nan)},
            "shape": {first: message.arrays[first][:1]},
            "huge": {name: array * 1e6 for name, array in message.arrays.items()},
        }
        if fault in changes:
            return (dataclasses.replace(message, arrays={**message.arrays, **changes[fault]}),)
        return {"replay": (before or message,), "duplicate": (message, message), "lost": ()}.get(fault, (message,))


def _soak(folder: Path, post: Post, **federation: Any) -> Iterable[CompletedRound]:
    overrides = [f"federation.{key}={value}" for key, value in {"min_sites": NEEDED, **federation}.items()]
    of = study("lat", f"sites=[{','.join(SITES)}]", "model.input_px=32", *overrides, rounds=ROUNDS)
    return rounds(of, SITES, SiteSettings(), folder, make_site=ToySite, post=post)  # type: ignore[arg-type]


REFUSED = {"nan": "not finite", "shape": "not float32", "missing": "switched off", "huge": "times as long"}


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["mean", "median"])
def test_a_long_run_with_faults_ends_whole(combine: str, tmp_path: Path) -> None:
    accepted, peaks, last = 0, [], None
    tracemalloc.start()
    for last in _soak(tmp_path, BadPost(), aggregation=combine, byzantine_sites=3):
        for site in SITES:
            fault, row = _fault(site, last.round), last.rows.get(site)
            if fault in REFUSED:
                assert row is not None and not row["accepted"] and REFUSED[fault] in row["reason"], (fault, row)
            elif fault == "replay" and last.round:  # of the round before; where that was lost on its way, too
                assert row is None or row["accepted"] or "not of round" in row["reason"]
            else:
                assert (row is not None and row["accepted"]) == (fault != "lost"), (fault, row)
        counted = Counter(bool(row["accepted"]) for row in last.rows.values())
        assert counted[True] + counted[False] + sum(site not in last.rows for site in SITES) == len(SITES)
        assert counted[True] >= NEEDED
        accepted += counted[True]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
    tracemalloc.stop()
    assert last is not None
    assert last.server.round == ROUNDS
    assert len(SITES) * ROUNDS * 0.7 < accepted < len(SITES) * ROUNDS
    # Everybody moves towards 1: with every fault kept out, that is where the model is.
    assert all(torch.isfinite(tensor).all() for tensor in last.server.shared.values())
    assert max(float((tensor - 1).abs().max()) for tensor in last.server.shared.values()) < 0.1
    assert max(peaks[20:]) < 1.2 * max(peaks[2:10]) + 1e5  # NumPy's and Python's memory, no more in late rounds


def test_without_a_lower_quorum_a_sites_fault_ends_the_run_as_its_own_error(tmp_path: Path) -> None:
    first = next((site, round_) for round_ in range(ROUNDS) for site in SITES if _fault(site, round_) == "missing")
    with pytest.raises(TrainingError, match="site {}, round {}: it is switched off".format(*first)):
        list(_soak(tmp_path, lambda message: (message,), min_sites="null"))
