"""The server's and sites' components of a job in one process, without NVFLARE's runtime, driven round by round.

A second `Job` on the same folders sees only what is on disk, as after a kill.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fedfms.flare.aggregator import RoundServerAggregator
from fedfms.flare.dispatch import DispatchFilter
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import HELD_DIGEST, TRAIN, to_arrays
from fedfms.flare.persistor import SharedModelPersistor
from fedfms.methods import ServerState, required_updates, training_sites
from fedfms.study import Study


def workspace(root: Path, site: str) -> Any:
    """NVFLARE's workspace of a server or site."""
    return SimpleNamespace(
        get_root_dir=lambda: str(root / site), get_run_dir=lambda job: str(root / site / job),
        get_app_config_dir=lambda job: str(root / site / job / f"app_{site}" / "config"),
    )  # fmt: skip


def same(one: object, other: object) -> bool:
    """Whether two plain structures hold the same bits."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    return one == other


class Job:
    """Job `id_` on the folders below `root`; it resumes the jobs `resume`."""

    def __init__(self, study: Study, root: Path, id_: str, resume: Sequence[str] = ()) -> None:
        self.study, self.root, self.id_ = study, root, id_
        self.persistor = SharedModelPersistor(study.to_dict(), resume=resume)
        self.aggregator = RoundServerAggregator(required_updates(study))
        self.filter = DispatchFilter()
        parts = {"persistor": self.persistor, "aggregator": self.aggregator}
        clients = [SimpleNamespace(name=name) for name in training_sites(study)]
        self.engine = SimpleNamespace(
            get_component=parts.get, fire_event=lambda *_: None, get_clients=lambda: clients,
        )  # fmt: skip
        self.context = self._context("server")
        self.persistor._build(self.context)
        self.aggregator.handle_event(EventType.START_RUN, self.context)
        self.executors = {site: SiteExecutor(study.to_dict(), resume) for site in training_sites(study)}
        self.sites = {site: self._context(site) for site in training_sites(study)}

    def _context(self, name: str) -> FLContext:
        context = FLContext()
        context.put(ReservedKey.IDENTITY_NAME, name, private=False, sticky=True)
        context.get_workspace = lambda: workspace(self.root, name)
        context.get_job_id = lambda: self.id_
        context.get_engine = lambda: self.engine
        return context

    @property
    def done(self) -> int:
        """Rounds that earlier jobs have completed."""
        return 0 if self.persistor.saved is None else self.persistor.saved.server.round

    def ask(self, site: str, round_: int) -> Shareable:
        """A site's answer to the training task of a round."""
        own = self.sites[site]
        self.executors[site].handle_event(EventType.START_RUN, own)
        peer = FLContext()
        peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
        peer.put(HELD_DIGEST, own.get_prop(HELD_DIGEST, ""), private=False, sticky=False)
        self.context.set_peer_context(peer)
        self.context.set_prop(FLContextKey.TASK_NAME, TRAIN)
        task: Shareable = DXO(DataKind.WEIGHTS, data=to_arrays(self.server.shared)).to_shareable()
        task.set_header(AppConstants.CURRENT_ROUND, round_)
        sent = self.filter.process_dxo(from_shareable(task), task, self.context)
        if sent is not None:
            task = sent.update_shareable(task)
        reply = self.executors[site].execute(TRAIN, task, own, Signal())
        assert reply.get_return_code() == ReturnCode.OK, reply
        reply.set_peer_props({ReservedKey.IDENTITY_NAME: site})
        reply.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
        return reply

    def round(self, round_: int) -> None:
        """Run a whole round."""
        self.context.set_prop(AppConstants.CURRENT_ROUND, round_)
        for site in training_sites(self.study):
            assert self.aggregator.accept(self.ask(site, round_), self.context), self.aggregator.rows
        self.aggregator.aggregate(self.context)
        self.aggregator.reset(self.context)

    @property
    def server(self) -> ServerState:
        """The server state before the next round."""
        return self.aggregator.server(self.context).state
