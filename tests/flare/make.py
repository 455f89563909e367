"""A server around the aggregator, just enough of one, and updates to send it; tasks for an executor."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fedfms.compression import CODECS
from fedfms.errors import DataError
from fedfms.federation.gate import agreed
from fedfms.flare.aggregator import RoundServerAggregator
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import STAMP, TRAIN, error_reply, job_of, to_arrays, update_dxo
from fedfms.flare.persistor import SharedModelPersistor
from fedfms.flare.resume import Keeper
from fedfms.methods import make_method
from fedfms.settings import SiteSettings
from fedfms.study import FederationSpec, Study
from fedfms.training.build import build

MODEL = {"decoder.w": torch.zeros(2, 2), "adapters.0.up.bias": torch.zeros(3)}


class Server:
    """An aggregator with just enough of a server around it."""

    def __init__(self, min_sites: int = 2, compression: str = "none") -> None:
        self.run = tempfile.TemporaryDirectory()
        study = Study(name="test", held_out=("unseen",), federation=FederationSpec(compression=compression))
        persistor = SharedModelPersistor(study.to_dict())
        persistor.study, persistor.method, persistor.shared = study, make_method("fedmsa", {}), MODEL
        persistor.sizes = {"total": 3.0, "trained": 2.0, "shared": 2.0, "shared_mb": 8e-6}  # as one that was started
        self.persistor = persistor
        self.panics: list[str] = []
        self.aggregator = RoundServerAggregator(min_sites)
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

    def stamp(self, site: str) -> dict[str, str]:
        """As an honest site's executor writes it, for the model that the server has."""
        shared = self.persistor.shared
        schema = agreed(shared, list(shared), CODECS.get(self.persistor.study.federation.compression)).hash()
        return {"site": site, "job": job_of(self.context), "schema": schema}

    def hand_out(self, task: str, shareable: Shareable, site: str) -> Shareable:
        """A task as NVFLARE's own communicator gives it to the site whose token a request has, before any filter."""
        communicator = WFCommServer()
        communicator.broadcast(Task(task, shareable), self.context, [site])
        name, id_, data = communicator.process_task_request(Client(site, "token"), self.context)
        workflow = SimpleNamespace(controller=SimpleNamespace(communicator=communicator))
        self.context.set_prop(FLContextKey.RUNNER, SimpleNamespace(current_wf=workflow))
        self.context.set_prop(FLContextKey.TASK_NAME, name)
        self.context.set_prop(FLContextKey.TASK_ID, id_)
        return data

    def send(self, site: str, shareable: Shareable, round_: int = 3) -> bool:
        """An answer of a site, which stamps it if it has no stamp yet."""
        if "DXO" in shareable:
            dxo = from_shareable(shareable)
            dxo.set_meta_prop(STAMP, dxo.get_meta_prop(STAMP) or self.stamp(site))
            shareable = dxo.update_shareable(shareable)
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


def task_of(study: Study) -> Shareable:
    """A task with the study's shared tensors as they begin."""
    return DXO(DataKind.WEIGHTS, data=to_arrays(build(study, SiteSettings()).shared())).to_shareable()


def do(executor: SiteExecutor, task: str, shareable: Shareable, context: FLContext, *, stop: bool = False) -> Shareable:
    """The executor's reply to a task, which it is told to stop at once where `stop`."""
    signal = Signal()
    if stop:
        signal.trigger("stop")
    return executor.execute(task, shareable, context, signal)
