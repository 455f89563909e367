"""A server around the aggregator, just enough of one, and updates to send it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedfms.errors import DataError
from fedfms.flare.aggregator import CheckedAggregator
from fedfms.flare.persistor import SharedModelPersistor
from fedfms.flare.resume import Keeper
from fedfms.flare.wire import TRAIN, error_reply, update_dxo
from fedfms.methods import make_method
from fedfms.study import FederationSpec, Study

MODEL = {"decoder.w": torch.zeros(2, 2), "adapters.0.up.bias": torch.zeros(3)}


class Server:
    """An aggregator with just enough of a server around it."""

    def __init__(self, min_sites: int = 2, wire: str = "float32") -> None:
        self.run = tempfile.TemporaryDirectory()
        study = Study(name="test", held_out=("unseen",), federation=FederationSpec(wire=wire))
        persistor = SharedModelPersistor(study.to_dict())
        persistor.study, persistor.method, persistor.shared = study, make_method("fedmsa", {}), MODEL
        self.persistor = persistor
        self.panics: list[str] = []
        self.aggregator = CheckedAggregator(min_sites)
        self.aggregator.system_panic = lambda reason, fl_ctx: self.panics.append(reason)
        self.context = FLContext()
        self.context.set_prop(AppConstants.CURRENT_ROUND, 3)
        clients = [SimpleNamespace(name=name) for name in ("a", "b", "c", "unseen")]
        parts = {"persistor": persistor, "aggregator": self.aggregator}
        engine = SimpleNamespace(
            get_component=lambda name: parts[name], fire_event=lambda *_: None, get_clients=lambda: clients
        )
        self.context.get_engine = lambda: engine
        self.context.get_workspace = lambda: SimpleNamespace(get_run_dir=lambda _: self.run.name)
        folder = Path(self.run.name)
        persistor.keeper = Keeper(folder / "kept", folder / "fedfms", study)

    def send(self, site: str, shareable: Shareable, round_: int = 3) -> bool:
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: site})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
        return self.aggregator.accept(shareable, self.context)

    def fail(self, site: str, reason: str, round_: int = 3) -> None:
        """As NVFLARE tells of an error reply: by an event, before it ignores it."""
        reply = error_reply(DataError(reason, where=f"site {site}"))
        reply.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
        peer = FLContext()
        peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
        self.context.set_peer_context(peer)
        self.context.set_prop(FLContextKey.TASK_NAME, TRAIN)
        self.context.set_prop(FLContextKey.TASK_RESULT, reply)
        self.aggregator.handle_event(EventType.BEFORE_PROCESS_SUBMISSION, self.context)

    def aggregate(self) -> dict[str, np.ndarray]:
        data: dict[str, np.ndarray] = from_shareable(self.aggregator.aggregate(self.context)).data
        return data


def update(
    value: float = 1.0, samples: Any = 10, round_: int = 3, val_dice: float | None = None, **change: Any
) -> Shareable:
    tensors = {name: torch.full_like(tensor, value) for name, tensor in MODEL.items()}
    dxo = update_dxo(tensors, samples=samples, round_=round_, report={"scores": None}, val_dice=val_dice)
    dxo.data.update(change)
    return dxo.to_shareable()
