"""A toy model's schema and messages about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedfms.compression import in_memory
from fedfms.federation.gate import WEIGHTS, Expected, Guard, Message, agreed
from fedfms.methods import ServerState, Tensors, make_method
from fedfms.study import FederationSpec

MODEL = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((4,), np.float32)}
TENSORS: Tensors = in_memory(MODEL.items())
AGREED = agreed(TENSORS, list(TENSORS), None)
ROUND = 3
EXPECTED = Expected("job", ROUND, AGREED, AGREED)


def message(site: str = "a", arrays: Mapping[str, Any] | None = None, **change: Any) -> Message:
    """What an honest site sends, but for the change."""
    honest: dict[str, Any] = {
        "sender": site, "names": (site, site), "job": "job", "rounds": (ROUND, ROUND), "kind": WEIGHTS,
        "schema": AGREED.hash(), "samples": 10, "arrays": MODEL if arrays is None else arrays,
    }  # fmt: skip
    return Message(**{**honest, **change})


def filled(value: float) -> dict[str, np.ndarray]:
    return {name: np.full_like(array, value) for name, array in MODEL.items()}


def take(guard: Guard, sent: Message, expected: Expected = EXPECTED) -> str | None:
    return guard.take(sent, expected, lambda: in_memory(sent.arrays.items()))


def aggregate(guard: Guard, sites: str, **federation: Any) -> ServerState:
    """The toy model after a round that began at zero, by FedAvg or by what `federation` says."""
    sent = dict.fromkeys(sites, TENSORS)
    start = ServerState(TENSORS, ROUND)
    return guard.aggregate(make_method("fedmsa", {}), start, sent, FederationSpec(**federation))


def value(server: ServerState) -> float:
    """Of a model all of whose elements are alike."""
    (one,) = torch.cat([tensor.flatten() for tensor in server.shared.values()]).unique().tolist()
    return float(one)
