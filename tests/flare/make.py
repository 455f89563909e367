"""A minimal server around the aggregator, updates to send to it, and tasks for an executor."""

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

from fedfms.compression import CODECS, Payload, digest, upload
from fedfms.errors import DataError
from fedfms.federation.server import RoundServer
from fedfms.federation.state import Saved
from fedfms.federation.update_schema import Schema
from fedfms.flare.aggregator import RoundServerAggregator
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import STAMP, TRAIN, error_reply, job_of, to_arrays, update_dxo
from fedfms.flare.persistor import SharedModelPersistor
from fedfms.flare.resume import CHECKPOINTS, ResumeCheckpoint
from fedfms.methods import Method, ServerState, Tensors, make_method
from fedfms.settings import SiteSettings
from fedfms.study import FederationSpec, Study
from fedfms.training.build import build

MODEL = {"decoder.w": torch.zeros(2, 2), "adapters.0.up.bias": torch.zeros(3)}
ROUND = 3  # the round in which the server starts


class Server:
    """An aggregator, a started persistor and NVFLARE's context around them, in round 3 of a run with a toy model.

    Attributes:
        run: the run's folder.
        panics: texts with which the job was ended.
    """

    def __init__(
        self, min_sites: int = 2, compression: str = "none", method: Method | None = None, model: Tensors = MODEL
    ) -> None:
        self.run = tempfile.TemporaryDirectory()
        study = Study(name="test", held_out=("unseen",), federation=FederationSpec(compression=compression))
        persistor = SharedModelPersistor(study.to_dict())
        persistor.study, persistor.method, persistor.shared = study, method or make_method("fedmsa", {}), model
        persistor.saved = Saved(ServerState(model, ROUND, study.seed), {}, {})
        persistor.sizes = {"total": 3.0, "trained": 2.0, "shared": 2.0, "shared_mb": 8e-6}
        self.persistor, self.study, self.model = persistor, study, model
        self.panics: list[str] = []
        self.aggregator = RoundServerAggregator(min_sites)
        self.aggregator.system_panic = lambda reason, fl_ctx: self.panics.append(reason)
        self.context = FLContext()
        self.set_round(ROUND)
        clients = [SimpleNamespace(name=name) for name in ("a", "b", "c", "unseen")]
        parts = {"persistor": persistor, "aggregator": self.aggregator}
        engine = SimpleNamespace(
            get_component=lambda name: parts[name], fire_event=lambda *_: None, get_clients=lambda: clients
        )
        self.context.get_engine = lambda: engine
        self.context.get_workspace = lambda: SimpleNamespace(get_run_dir=lambda _: self.run.name)
        folder = Path(self.run.name)
        persistor.checkpoint = ResumeCheckpoint(folder / CHECKPOINTS, folder / "fedfms", study)

    @property
    def round_server(self) -> RoundServer:
        """The server's side of the run."""
        return self.aggregator.server(self.context)

    def set_round(self, round_: int) -> None:
        """What NVFLARE's controller does when it starts a round."""
        self.context.set_prop(AppConstants.CURRENT_ROUND, round_)

    def stamp(self, site: str) -> dict[str, str]:
        """The stamp that an honest site's executor writes, for the server's model."""
        codec = CODECS.get(self.study.federation.compression)
        schema = Schema.of_payload(self.model, self.model, codec).hash()
        return {"site": site, "job": job_of(self.context), "schema": schema}

    def hand_out(self, task: str, shareable: Shareable, site: str) -> Shareable:
        """A task, before any filter, as NVFLARE's communicator gives it to the site that the request's token proves."""
        communicator = WFCommServer()
        communicator.broadcast(Task(task, shareable), self.context, [site])
        name, id_, data = communicator.process_task_request(Client(site, "token"), self.context)
        workflow = SimpleNamespace(controller=SimpleNamespace(communicator=communicator))
        self.context.set_prop(FLContextKey.RUNNER, SimpleNamespace(current_wf=workflow))
        self.context.set_prop(FLContextKey.TASK_NAME, name)
        self.context.set_prop(FLContextKey.TASK_ID, id_)
        return data

    def send(self, site: str, shareable: Shareable, round_: int = ROUND) -> bool:
        """Deliver a site's answer, with an honest stamp if it has none; whether the aggregator accepts it."""
        if "DXO" in shareable:
            dxo = from_shareable(shareable)
            dxo.set_meta_prop(STAMP, dxo.get_meta_prop(STAMP) or self.stamp(site))
            shareable = dxo.update_shareable(shareable)
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: site})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
        return self.aggregator.accept(shareable, self.context)

    def fail(self, site: str, reason: str, round_: int = ROUND) -> None:
        """Deliver a site's error reply: NVFLARE fires an event for it and does not call the aggregator."""
        reply = error_reply(DataError(reason, where=f"site {site}"))
        reply.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
        peer = FLContext()
        peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
        self.context.set_peer_context(peer)
        self.context.set_prop(FLContextKey.TASK_NAME, TRAIN)
        self.context.set_prop(FLContextKey.TASK_RESULT, reply)
        self.aggregator.handle_event(EventType.BEFORE_PROCESS_SUBMISSION, self.context)

    def aggregate(self) -> dict[str, np.ndarray]:
        """The next global model."""
        data: dict[str, np.ndarray] = from_shareable(self.aggregator.aggregate(self.context)).data
        return data


def payload_of(tensors: Tensors) -> Payload:
    """Whole tensors, as they travel without compression."""
    return Payload(to_arrays(tensors))


def update(
    value: float = 1.0, samples: Any = 10, round_: int = ROUND, val_dice: float | None = None, **change: Any
) -> Shareable:
    """An update whose elements are all `value`; `change` replaces or adds arrays."""
    payload = payload_of({name: torch.full_like(tensor, value) for name, tensor in MODEL.items()})
    dxo = update_dxo(payload, samples=samples, round_=round_, report={"scores": None}, val_dice=val_dice)
    dxo.data.update(change)
    return dxo.to_shareable()


def compressed_update(
    codec: str, value: float, base: str = digest(MODEL), round_: int = ROUND, **change: Any
) -> Shareable:
    """A compressed update to a model whose elements are all `value`; `change` replaces or adds arrays."""
    trained = {name: torch.full_like(tensor, value) for name, tensor in MODEL.items()}
    payload = Payload({**upload(trained, MODEL, {}, CODECS[codec]).arrays, **change}, base)
    return update_dxo(payload, samples=10, round_=round_, report={"scores": None}, val_dice=0.5).to_shareable()


def task_of(study: Study) -> Shareable:
    """A task with the study's initial shared tensors."""
    return DXO(DataKind.WEIGHTS, data=to_arrays(build(study, SiteSettings()).shared())).to_shareable()


def do(executor: SiteExecutor, task: str, shareable: Shareable, context: FLContext, *, stop: bool = False) -> Shareable:
    """The executor's reply to a task; with `stop`, the abort signal is set before it begins."""
    signal = Signal()
    if stop:
        signal.trigger("stop")
    return executor.execute(task, shareable, context, signal)
