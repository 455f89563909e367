"""NVFLARE's aggregator as an adapter: it translates messages and events for `fedfms.federation.RoundServer`."""

import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.app_constant import AppConstants

from fedfms.errors import UpdateError
from fedfms.federation.memory_mapped import clear, memory_mapped
from fedfms.federation.messages import Dispatch
from fedfms.federation.rows import to_json
from fedfms.federation.server import RoundServer
from fedfms.flare.messages import REASON, TRAIN, job_of, message_of, sender_of, to_arrays
from fedfms.flare.persistor import SharedModelPersistor
from fedfms.flare.resume import run_folder
from fedfms.methods import ServerState, training_sites


class RoundServerAggregator(Aggregator):
    """Holds the run's `RoundServer`, and fails the job when a round has too few updates.

    Args:
        min_sites: updates that a round needs.
        persistor_id: the component that holds the study, its method and the initial shared tensors.
    """

    def __init__(self, min_sites: int, persistor_id: str = "persistor") -> None:
        super().__init__()
        self._min_sites, self._persistor_id = min_sites, persistor_id
        self._server: RoundServer | None = None
        self._lock = threading.Lock()  # NVFLARE calls from several threads

    def server(self, fl_ctx: FLContext) -> RoundServer:
        """The run's `RoundServer`, made at first use.

        Raises:
            TypeError: the persistor is another component, or not started.
        """
        with self._lock:
            if self._server is None:
                persistor = self._persistor(fl_ctx)
                study, method, saved = persistor.study, persistor.method, persistor.saved
                if study is None or method is None:
                    raise TypeError(f"component {self._persistor_id!r} is not started")
                held_out = study.held_out
                engine, folder = fl_ctx.get_engine(), _updates_folder(fl_ctx)

                def sites() -> Iterable[str]:
                    present = (client.name for client in engine.get_clients())
                    return training_sites(study) or [name for name in present if name not in held_out]

                self._server = RoundServer(
                    study, method,
                    ServerState(shared=persistor.shared, seed=study.seed) if saved is None else saved.server,
                    sites, min_updates=self._min_sites, job=job_of(fl_ctx),
                    mirrors=None if saved is None else saved.mirrors, store=partial(memory_mapped, folder=folder),
                )  # fmt: skip
            return self._server

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """This round's rows by site, for the recorder."""
        return {} if self._server is None else self._server.rows

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Record a site's error, which NVFLARE does not pass to `accept`; drop updates when a run starts or ends."""
        if event_type in (EventType.START_RUN, EventType.END_RUN):
            with self._lock:
                if self._server is not None:
                    self._server.drop_updates()  # not the rows: the recorder reads them after this
                if event_type == EventType.START_RUN:
                    self._server = None
            clear(_updates_folder(fl_ctx))
        if event_type == EventType.BEFORE_PROCESS_SUBMISSION and fl_ctx.get_prop(FLContextKey.TASK_NAME) == TRAIN:
            self._record_error(fl_ctx)

    def _record_error(self, fl_ctx: FLContext) -> None:
        result, peer = fl_ctx.get_prop(FLContextKey.TASK_RESULT), fl_ctx.get_peer_context()
        if not isinstance(result, Shareable) or peer is None or result.get_return_code() in (None, ReturnCode.OK):
            return
        round_ = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        sent_for = result.get_cookie(AppConstants.CONTRIBUTION_ROUND)
        if round_ is not None and sent_for in (None, round_):  # not of an earlier round, whose rows are written
            reason = str(result.get_header(REASON) or f"answered {result.get_return_code()}")
            self.server(fl_ctx).reject(sender_of(result, peer.get_identity_name()), int(round_), reason)

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Validate what a site sent; True if it will be aggregated."""
        message = message_of(shareable, int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND)))
        server = self.server(fl_ctx)
        reason = server.accept(message)
        if reason is not None and not server.is_held_out(message.sender):
            text = f"fedfms: round {message.round}: update of {message.sender} rejected: {reason}"
            self.log_warning(fl_ctx, text, fire_event=False)
        return reason is None

    def dispatch(self, site: str, round_: int, held: str, fl_ctx: FLContext) -> Dispatch | None:
        """`RoundServer.dispatch`; where the server has no room left, the job ends."""
        try:
            return self.server(fl_ctx).dispatch(site, round_, held)
        except UpdateError as error:
            self.system_panic(f"fedfms: round {round_}: what sites hold: {error.line()}", fl_ctx)
            return None

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """The next global model; ends the job when fewer than `min_sites` updates are left."""
        server = self.server(fl_ctx)
        try:
            state = server.close()
        except UpdateError as error:
            self.system_panic(f"fedfms: {error.line()}", fl_ctx)
            return Shareable()
        rows = [to_json(row) for _, row in sorted(server.rows.items())]
        self._persistor(fl_ctx).store(state, server.mirrors, rows)
        reply: Shareable = DXO(DataKind.WEIGHTS, data=to_arrays(state.shared)).to_shareable()
        return reply

    def reset(self, fl_ctx: FLContext) -> None:
        """Open the next round."""
        self.server(fl_ctx).open_round()

    def _persistor(self, fl_ctx: FLContext) -> SharedModelPersistor:
        persistor = fl_ctx.get_engine().get_component(self._persistor_id)
        if not isinstance(persistor, SharedModelPersistor):
            raise TypeError(f"component {self._persistor_id!r} must be a SharedModelPersistor")
        return persistor


def _updates_folder(fl_ctx: FLContext) -> Path:
    """Where accepted updates are memory-mapped, in the server's run folder."""
    return run_folder(fl_ctx.get_workspace(), fl_ctx.get_job_id()) / "updates"
