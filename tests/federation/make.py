"""A toy model, a round server for it, and messages about it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedfms.compression import in_memory
from fedfms.federation.messages import WEIGHTS, Expected, Message
from fedfms.federation.server import RoundServer
from fedfms.federation.update_schema import Schema
from fedfms.methods import ServerState, Tensors, make_method
from fedfms.study import FederationSpec, Study

MODEL = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((4,), np.float32)}
TENSORS: Tensors = in_memory(MODEL.items())
SCHEMA = Schema.of_payload(TENSORS, TENSORS, None)
ROUND = 3
EXPECTED = Expected("job", ROUND, SCHEMA, SCHEMA)


def round_server(min_updates: int = 1, sites: str = "abcd", **federation: Any) -> RoundServer:
    """A FedAvg server whose model is zero before round 3."""
    study = Study(name="toy", sites=("a", "b"), held_out=("h",), federation=FederationSpec(**federation))
    state = ServerState(TENSORS, ROUND)
    return RoundServer(study, make_method("fedmsa", {}), state, lambda: sites, min_updates=min_updates, job="job")


def message(site: str = "a", arrays: Mapping[str, Any] | None = None, **change: Any) -> Message:
    """An honest site's message, except for the change."""
    honest: dict[str, Any] = {
        "sender": site, "round": ROUND, "names": (site, site), "job": "job", "rounds": (ROUND, ROUND), "kind": WEIGHTS,
        "schema": SCHEMA.hash(), "samples": 10, "arrays": MODEL if arrays is None else arrays,
    }  # fmt: skip
    return Message(**{**honest, **change})


def filled(value: float) -> dict[str, np.ndarray]:
    return {name: np.full_like(array, value) for name, array in MODEL.items()}


def value(server: ServerState) -> float:
    """The one value of all elements of the model."""
    (one,) = torch.cat([tensor.flatten() for tensor in server.shared.values()]).unique().tolist()
    return float(one)
