"""The server's aggregator: checks every update, lets the method combine them, and fails a round that is too thin.

NVFLARE's own accepts NaN, wrong shapes and negative counts, counts an error reply as an answer, and adds in order
of arrival; see `fedfms.guard`.
"""

from __future__ import annotations

import threading
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.app_constant import AppConstants

from fedfms.flare.persistor import SharedModelPersistor
from fedfms.flare.wire import REASON, REPORT, ROUND, TRAIN, VAL_DICE, kind_of, nbytes, to_arrays, to_tensors
from fedfms.guard.checks import Schema, check_dice, check_names, check_samples, check_tensors
from fedfms.methods import Method, Update


class CheckedAggregator(Aggregator):
    """Accepts updates one by one, combines them in an order that does not depend on their arrival.

    Args:
        min_sites: updates that a round needs.
        persistor_id: the component that holds the study, its method and the shared tensors.
    """

    def __init__(self, min_sites: int, persistor_id: str = "persistor") -> None:
        super().__init__()
        self._min_sites = min_sites
        self._persistor_id = persistor_id
        self._updates: dict[str, Update] = {}
        self._state: Any = {}
        # NVFLARE calls `accept` from the threads that answer the sites, `aggregate` from the workflow's own.
        self._lock = threading.Lock()
        self._closed = False  # the round's updates are being combined: whoever comes now comes too late
        self.rows: dict[str, dict[str, Any]] = {}  # of this round, by site; the recorder reads them

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Keep the reason of a site that answers with an error: NVFLARE does not hand it to `accept`."""
        if event_type == EventType.BEFORE_PROCESS_SUBMISSION and fl_ctx.get_prop(FLContextKey.TASK_NAME) == TRAIN:
            self._note_error(fl_ctx)

    def _note_error(self, fl_ctx: FLContext) -> None:
        result, peer = fl_ctx.get_prop(FLContextKey.TASK_RESULT), fl_ctx.get_peer_context()
        if not isinstance(result, Shareable) or peer is None or result.get_return_code() in (None, ReturnCode.OK):
            return
        round_ = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        site, sent_for = str(peer.get_identity_name()), result.get_cookie(AppConstants.CONTRIBUTION_ROUND)
        if round_ is None or sent_for not in (None, round_):  # of an earlier round, whose rows are written
            return
        reason = str(result.get_header(REASON) or f"answered {result.get_return_code()}")
        with self._lock:
            if site not in self._updates and not self._closed:
                held_out = site in self._holder(fl_ctx)[2]
                row = {"round": int(round_), "site": site, "accepted": False, "reason": reason, "held_out": held_out}
                self.rows[site] = row | _numbers(None)

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Check what a site sent; True if it is an update that will be aggregated."""
        with self._lock:
            return self._accept(shareable, fl_ctx)

    def _accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        site = str(shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, "?"))
        round_ = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND))
        if self._closed:
            self.log_warning(fl_ctx, f"fedfms: round {round_}: update of {site} came too late", fire_event=False)
            return False
        row: dict[str, Any] = {"round": round_, "site": site, "accepted": False, "reason": ""}
        try:
            dxo = from_shareable(shareable)
        except ValueError:
            dxo = DXO(DataKind.METRICS, data={})
        report = dxo.data.get(REPORT) if dxo.data_kind == DataKind.METRICS else dxo.get_meta_prop(REPORT)
        row |= _numbers(report)
        held_out = site in self._holder(fl_ctx)[2]
        reason = "held out" if held_out else self._refusal(site, round_, dxo, shareable, fl_ctx)
        if reason is None:
            samples = int(dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND))
            self._updates[site] = Update(site, to_tensors(dxo.data), samples)
            row |= {"accepted": True, "samples": samples, "bytes_up": nbytes(dxo.data)}
        elif not held_out:
            self.log_warning(fl_ctx, f"fedfms: round {round_}: update of {site} refused: {reason}", fire_event=False)
        if site not in self._updates or reason is None:
            self.rows[site] = row | {"held_out": held_out, "reason": reason or ""}
        return reason is None

    def _refusal(self, site: str, round_: int, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> str | None:
        """Why the update may not be aggregated, or None."""
        if site in self._updates:
            return "a second update of the same site in one round"
        if dxo.data_kind != DataKind.WEIGHTS:
            return f"it holds {kind_of(dxo)}, not weights"
        sent_for = (shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND), dxo.get_meta_prop(ROUND))
        if sent_for != (round_, round_):
            return f"it is of round {sent_for[1]}, not of round {round_}"
        schema = Schema.of(self._holder(fl_ctx)[1])
        metrics = dxo.get_meta_prop(MetaKey.INITIAL_METRICS)
        return (
            check_samples(dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND))
            or check_dice(metrics.get(VAL_DICE) if isinstance(metrics, dict) else metrics)
            or check_names(dxo.data, schema)
            or check_tensors(dxo.data, schema)
        )

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """The next global model; fails the job when fewer than `min_sites` updates were accepted."""
        with self._lock:
            self._closed = True
        if len(self._updates) < self._min_sites:
            self.system_panic(f"fedfms: {self._too_thin(int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND)))}", fl_ctx)
            return Shareable()
        method: Method = self._holder(fl_ctx)[0]
        combined = method.combine(list(self._updates.values()), self._state)
        self._state = combined.state
        reply: Shareable = DXO(DataKind.WEIGHTS, data=to_arrays(combined.shared)).to_shareable()
        return reply

    def reset(self, fl_ctx: FLContext) -> None:
        """Forget the round that was aggregated, and open the next."""
        with self._lock:
            self._updates, self.rows, self._closed = {}, {}, False

    def _too_thin(self, round_: int) -> str:
        trained = [row for row in self.rows.values() if not row["held_out"]]
        reasons = [_reason(row) for row in trained if not row["accepted"]]
        silent = "" if reasons else "the others did not answer"
        return (
            f"round {round_}: {len(self._updates)} updates accepted, {self._min_sites} needed "
            f"({'; '.join(sorted(reasons)) or silent})"
        )

    def _holder(self, fl_ctx: FLContext) -> tuple[Method, Any, tuple[str, ...]]:
        persistor = fl_ctx.get_engine().get_component(self._persistor_id)
        if not isinstance(persistor, SharedModelPersistor) or persistor.method is None or persistor.study is None:
            raise TypeError(f"component {self._persistor_id!r} must be a started SharedModelPersistor")
        return persistor.method, persistor.shared, persistor.study.held_out


def _reason(row: dict[str, Any]) -> str:
    """A row's reason with its site, which a site's own error names already."""
    site, reason = row["site"], row["reason"]
    return str(reason) if str(reason).startswith(f"site {site}") else f"{site}: {reason}"


def _numbers(report: Any) -> dict[str, Any]:
    """The known keys of a site's report; whatever else it sends is dropped."""
    report = report if isinstance(report, dict) else {}
    keys = ("scores", "train_loss", "seconds", "bytes_down")
    return {key: report.get(key) for key in keys} | {"samples": 0, "bytes_up": 0}
