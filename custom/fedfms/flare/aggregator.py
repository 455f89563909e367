"""The server's side of a method: checks every update, combines them, and knows what each site is to get next.

NVFLARE's own accepts NaN, wrong shapes and negative counts, counts an error reply as an answer, and adds in order
of arrival; see `fedfms.federation`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.app_constant import AppConstants

from fedfms.compression import CODECS, DownlinkCompressor, Download
from fedfms.errors import UpdateError
from fedfms.federation.gate import Expected, Guard, Message, agreed, decoded
from fedfms.federation.memory_mapped import clear, memory_mapped
from fedfms.federation.rows import line_of, one_line
from fedfms.federation.state import Saved
from fedfms.flare.messages import REASON, TRAIN, job_of, message_of, sender_of, to_arrays
from fedfms.flare.persistor import SharedModelPersistor
from fedfms.flare.resume import run_folder
from fedfms.methods import Method, ServerState, Tensors, training_sites
from fedfms.study import Study


class _Holder(NamedTuple):
    """What the persistor has built: the method, the shared tensors before the first round, the study."""

    method: Method
    shared: Tensors
    study: Study
    saved: Saved | None  # by a job that this one goes on from


class RoundServerAggregator(Aggregator):
    """Accepts updates one by one, combines them in an order that does not depend on their arrival, and fails a round
    that is too thin.

    Args:
        min_sites: updates that a round needs.
        persistor_id: the component that holds the study, its method and the shared tensors.
    """

    def __init__(self, min_sites: int, persistor_id: str = "persistor") -> None:
        super().__init__()
        self._min_sites = min_sites
        self._persistor_id = persistor_id
        self._guard = Guard(min_sites)
        self._server: ServerState | None = None
        self._sent: tuple[int, dict[str, Tensors]] = (-1, {})  # a round, and what the method has for each site in it
        self._downlink: DownlinkCompressor | None = None
        # NVFLARE calls `accept` from the threads that answer the sites, `aggregate` from the workflow's own.
        self._lock = threading.Lock()
        self._over = False  # the job is ending, for want of room: nothing more goes out or comes in
        self._closed = False  # the round's updates are being combined: whoever comes now comes too late
        self._done = -1  # the last round that was combined: NVFLARE counts on only after `reset` has opened the next
        self.notes: Mapping[str, Any] = {}  # of this round, for the recorder: what the method tells of its decisions

    @property
    def rows(self) -> Mapping[str, dict[str, Any]]:
        """This round's rows by site, for the recorder."""
        return self._guard.rows

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Keep the reason of a site that answers with an error: NVFLARE does not hand it to `accept`. Where a run
        starts or ends, however it does, forget the updates.
        """
        if event_type in (EventType.START_RUN, EventType.END_RUN):
            with self._lock:
                if event_type == EventType.START_RUN:
                    self._guard = Guard(self._min_sites)
                self._over = False
                self._guard.drop()  # the recorder comes after us, and tells why a round had no end
            clear(_spool(fl_ctx))
        if event_type == EventType.BEFORE_PROCESS_SUBMISSION and fl_ctx.get_prop(FLContextKey.TASK_NAME) == TRAIN:
            self._note_error(fl_ctx)

    def _note_error(self, fl_ctx: FLContext) -> None:
        result, peer = fl_ctx.get_prop(FLContextKey.TASK_RESULT), fl_ctx.get_peer_context()
        if not isinstance(result, Shareable) or peer is None or result.get_return_code() in (None, ReturnCode.OK):
            return
        round_ = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        site, sent_for = sender_of(result, peer.get_identity_name()), result.get_cookie(AppConstants.CONTRIBUTION_ROUND)
        if round_ is None or sent_for not in (None, round_):  # of an earlier round, whose rows are written
            return
        reason = one_line(str(result.get_header(REASON) or f"answered {result.get_return_code()}"))
        with self._lock:
            if not self._closed and round_ > self._done:
                self._guard.fail(site, int(round_), reason, held_out=site in self._study(fl_ctx).held_out)

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Check what a site sent; True if it is an update that will be aggregated."""
        with self._lock:
            return self._accept(message_of(shareable), fl_ctx)

    def _accept(self, message: Message, fl_ctx: FLContext) -> bool:
        site, round_ = message.sender, int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND))
        if self._over or self._closed or round_ <= self._done:
            self.log_warning(fl_ctx, f"fedfms: round {round_}: update of {site} came too late", fire_event=False)
            return False
        if site in self._study(fl_ctx).held_out:
            self._guard.fail(site, round_, "held out", held_out=True, report=message.report)
            return False
        reason = self._guard.take(
            message, self._expected(site, round_, fl_ctx), lambda: self._kept(site, message.arrays, fl_ctx)
        )
        if reason is not None:
            self.log_warning(fl_ctx, f"fedfms: round {round_}: update of {site} refused: {reason}", fire_event=False)
        return reason is None

    def _expected(self, site: str, round_: int, fl_ctx: FLContext) -> Expected:
        """What the message of a site must be: what the method says of the tensors that it was sent."""
        holder, downlink = self._holder(fl_ctx), self._wire(fl_ctx)
        names = holder.method.sent_names(round_, tuple(self._to_send(site, round_, fl_ctx)))
        codec = None if downlink is None else downlink.codec
        base = None if downlink is None else downlink.holds(site) if site in downlink else ""
        return Expected(
            job_of(fl_ctx), round_, agreed(holder.shared, list(holder.shared), codec),
            agreed(holder.shared, names, codec), base,
        )  # fmt: skip

    def _kept(self, site: str, arrays: Mapping[str, np.ndarray], fl_ctx: FLContext) -> Tensors:
        """The whole tensors of a good update, put by until the round is combined."""
        downlink = self._wire(fl_ctx)
        if downlink is None:
            return memory_mapped(arrays.items(), _spool(fl_ctx))
        return memory_mapped(decoded(arrays, downlink.received(site), downlink.codec), _spool(fl_ctx))

    def _wire(self, fl_ctx: FLContext) -> DownlinkCompressor | None:
        """The server's end of a compressed wire; None where tensors travel as they are."""
        codec = CODECS.get(self._study(fl_ctx).federation.compression)
        if self._downlink is None and codec is not None:
            saved = self._holder(fl_ctx).saved
            mirrors, folder = {} if saved is None else saved.mirrors, _spool(fl_ctx)
            self._downlink = DownlinkCompressor(codec, mirrors, keep=lambda arrays: memory_mapped(arrays, folder))
        return self._downlink

    def download_for(self, site: str, round_: int, claim: str, fl_ctx: FLContext) -> Download | None:
        """A site's message for the training of a round, coded; None where it gets whole tensors (`tensors_for`).

        Args:
            claim: digest of what the site says that it holds.
        """
        with self._lock:
            downlink = self._wire(fl_ctx)
            if downlink is None or self._over or site in self._study(fl_ctx).held_out:
                return None
            try:
                target = self._to_send(site, round_, fl_ctx)
                if round_ != self._sent[0]:
                    return None  # a slow site still asks for a round that is over, and will be refused
                if site not in downlink:
                    downlink.join(site, target, self._now(fl_ctx).shared)
            except UpdateError as error:
                self._over = True
                self.system_panic(f"fedfms: round {round_}: what sites hold: {error.line()}", fl_ctx)
                return None
            return downlink.message(site, claim)

    def tensors_for(self, site: str, round_: int | None, fl_ctx: FLContext) -> Tensors | None:
        """What a site is to get: for the training of a round, or (None) to score its final model.

        None where that is what the task holds anyway: the global model.
        """
        with self._lock:
            if site in self._study(fl_ctx).held_out:
                return None
            if round_ is None:
                return self._now(fl_ctx).per_site.get(site)
            return self._to_send(site, round_, fl_ctx)

    def _to_send(self, site: str, round_: int, fl_ctx: FLContext) -> Tensors:
        server = replace(self._now(fl_ctx), round=round_)
        of, sent = self._sent
        if of != round_:
            # All sites at once, and once a round: a method may draw for them together.
            named, held_out = training_sites(self._study(fl_ctx)), self._study(fl_ctx).held_out
            here = [client.name for client in fl_ctx.get_engine().get_clients() if client.name not in held_out]
            sent = self._holder(fl_ctx).method.dispatch(server, sorted(named or here))
            if of < round_:  # a slow site may still ask for a round that is over
                self._sent = (round_, sent)
                if (downlink := self._wire(fl_ctx)) is not None:
                    downlink.advance(sent, server.shared)
        return sent.get(site, server.shared)  # a newcomer in the middle of a round

    def _was_sent(self, round_: int, fl_ctx: FLContext) -> dict[str, Tensors]:
        """What each site whose update is in was sent: what its differences are to."""
        with self._lock:
            downlink = self._wire(fl_ctx)
            sites = [site for site in self.rows if site in self._guard]
            if downlink is not None:
                return {site: downlink.received(site) for site in sites}
            return {site: self._to_send(site, round_, fl_ctx) for site in sites}

    def declare(self, site: str, samples: Any) -> None:
        """What a site says with its first request that it trains on: `Guard.declare`."""
        with self._lock:
            self._guard.declare(site, samples)

    def told(self, site: str) -> str:
        """Why the site's last update was not used; empty where it was."""
        with self._lock:
            return self._guard.told.get(site, "")

    def _now(self, fl_ctx: FLContext) -> ServerState:
        if self._server is None:
            holder = self._holder(fl_ctx)
            begun = ServerState(shared=holder.shared, seed=holder.study.seed)
            self._server = begun if holder.saved is None else holder.saved.server
        return self._server

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """The next global model; fails the job when fewer than `min_sites` updates are left."""
        with self._lock:
            self._closed = True
        round_, holder = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND)), self._holder(fl_ctx)
        server = replace(self._now(fl_ctx), round=round_)
        try:
            after = self._guard.aggregate(
                holder.method, server, self._was_sent(round_, fl_ctx), holder.study.federation,
                keep=lambda arrays: memory_mapped(arrays, _spool(fl_ctx)),
            )  # fmt: skip
        except UpdateError as error:
            self.system_panic(f"fedfms: {error.line()}", fl_ctx)
            return Shareable()
        with self._lock:
            mirrors = {} if self._downlink is None else {s: dict(m) for s, m in self._downlink.mirrors.items()}
            rows = [line_of(row) for _, row in sorted(self.rows.items())]
        self._persistor(fl_ctx).keep(after, mirrors, rows)
        with self._lock:
            self._server, self.notes, self._done = after, after.notes, round_
        reply: Shareable = DXO(DataKind.WEIGHTS, data=to_arrays(after.shared)).to_shareable()
        return reply

    def reset(self, fl_ctx: FLContext) -> None:
        """Forget the round that was aggregated, and open the next."""
        with self._lock:
            self._guard.begin()
            self.notes, self._closed = {}, False

    def _holder(self, fl_ctx: FLContext) -> _Holder:
        persistor = self._persistor(fl_ctx)
        if persistor.method is None or persistor.study is None:
            raise TypeError(f"component {self._persistor_id!r} must be a started SharedModelPersistor")
        return _Holder(persistor.method, persistor.shared, persistor.study, persistor.saved)

    def _persistor(self, fl_ctx: FLContext) -> SharedModelPersistor:
        persistor = fl_ctx.get_engine().get_component(self._persistor_id)
        if not isinstance(persistor, SharedModelPersistor):
            raise TypeError(f"component {self._persistor_id!r} must be a started SharedModelPersistor")
        return persistor

    def _study(self, fl_ctx: FLContext) -> Study:
        return self._holder(fl_ctx).study


def _folder(fl_ctx: FLContext) -> Path:
    """The run's folder of ours at the server."""
    return run_folder(fl_ctx.get_workspace(), fl_ctx.get_job_id())


def _spool(fl_ctx: FLContext) -> Path:
    return _folder(fl_ctx) / "spool"
