"""Twenty sites of a toy model for thirty rounds in the in-process loop, with faults drawn from a seed."""

import dataclasses
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedfms.compression import Payload
from fedfms.errors import TrainingError
from fedfms.federation.inprocess import CompletedRound, Deliver, rounds
from fedfms.federation.messages import Message
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
    """Moves every tensor a little towards 1, with noise; has no image and no network."""

    def __init__(self, study: Study, name: str, *_: Any) -> None:
        self.study, self.name = study, name

    def held_digest(self) -> str:
        return ""

    def train_round(self, round_: int, received: Tensors) -> RoundResult:
        stream = rng(self.study.seed, self.name, round_, "toy")
        if _fault(self.name, round_) == "missing":
            raise TrainingError("it is switched off", where=f"site {self.name}, round {round_}")
        noise = {name: stream.normal(0, 1e-3, tensor.shape) for name, tensor in received.items()}
        tensors = {
            name: tensor + 0.1 * (1 - tensor) + torch.from_numpy(noise[name].astype(np.float32))
            for name, tensor in received.items()
        }
        payload = Payload({name: tensor.numpy() for name, tensor in tensors.items()})
        return RoundResult(Update(self.name, tensors, 10 + len(self.name)), payload, None, None, 0.0)


def _fault(site: str, round_: int) -> str:
    """The fault of a site in a round, or ""; about one in four has one."""
    stream = rng(7, site, round_, "fault")
    return str(stream.choice(FAULTS)) if stream.random() < 0.25 else ""


class FaultyTransport:
    """Applies the site's fault of the round to a message."""

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


def _soak(folder: Path, deliver: Deliver, **federation: Any) -> Iterable[CompletedRound]:
    overrides = [f"federation.{key}={value}" for key, value in {"min_sites": NEEDED, **federation}.items()]
    of = study("lat", f"sites=[{','.join(SITES)}]", "model.input_px=32", *overrides, rounds=ROUNDS)
    return rounds(of, SITES, SiteSettings(), folder, make_site=ToySite, deliver=deliver)  # type: ignore[arg-type]


REJECTED = {"nan": "not finite", "shape": "not float32", "missing": "switched off", "huge": "times as long"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mean", "median"])
def test_a_long_run_with_faults_completes(rule: str, tmp_path: Path) -> None:
    accepted, peaks, last = 0, [], None
    tracemalloc.start()
    for last in _soak(tmp_path, FaultyTransport(), aggregation=rule, byzantine_sites=3):
        for site in SITES:
            fault, row = _fault(site, last.round), last.rows.get(site)
            if fault in REJECTED:
                assert row is not None and not row["accepted"] and REJECTED[fault] in row["reason"], (fault, row)
            elif fault == "replay" and last.round:  # the message of the round before, if it was delivered
                assert row is None or row["accepted"] or "not to round" in row["reason"]
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
    # All sites move towards 1: if every fault is rejected, the model ends there.
    assert all(torch.isfinite(tensor).all() for tensor in last.server.shared.values())
    assert max(float((tensor - 1).abs().max()) for tensor in last.server.shared.values()) < 0.1
    assert max(peaks[20:]) < 1.2 * max(peaks[2:10]) + 1e5  # NumPy's and Python's memory does not grow in late rounds


def test_without_a_lower_quorum_a_sites_error_ends_the_run(tmp_path: Path) -> None:
    first = next((site, round_) for round_ in range(ROUNDS) for site in SITES if _fault(site, round_) == "missing")
    with pytest.raises(TrainingError, match="site {}, round {}: it is switched off".format(*first)):
        list(_soak(tmp_path, lambda message: (message,), min_sites="null"))
