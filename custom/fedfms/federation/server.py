"""The server's side of a run: dispatch, validation and aggregation, round by round."""

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from fedfms.compression import CODECS, ArrayStore, DownlinkCompressor, in_memory
from fedfms.errors import UpdateError
from fedfms.federation.messages import Dispatch, Expected, Message
from fedfms.federation.robust import RoundUpdates, apply_rule, limit_norms, limit_shares
from fedfms.federation.rows import one_line, report_columns, too_few_text
from fedfms.federation.update_schema import Schema
from fedfms.federation.validation import check_samples, decoded, rejection_reason
from fedfms.methods import Method, ServerState, Tensors, Update
from fedfms.methods.fedavg import sorted_by_site
from fedfms.study import Study


class RoundServer:
    """Dispatches the shared tensors, accepts updates and aggregates them.

    One object serves the in-process loop and NVFLARE's aggregator, which is why both give the same numbers. It knows
    neither NVFLARE nor files. Methods may be called from several threads.

    Args:
        study: the resolved study (`fedfms.methods.resolve_study`).
        state: the server state before the next round.
        sites: returns the sites that train, asked once a round.
        min_updates: updates that a round needs.
        job: id of the job, which each message must name.
        mirrors: of a resumed run with compression, the shared tensors that each site holds.
        store: where decoded updates are put until aggregation.

    Attributes:
        state: the server state before the current round.
        rows: one row per site for the records of the round.
    """

    def __init__(
        self, study: Study, method: Method, state: ServerState, sites: Callable[[], Iterable[str]], *,
        min_updates: int, job: str = "", mirrors: Mapping[str, Tensors] | None = None, store: ArrayStore = in_memory,
    ) -> None:  # fmt: skip
        self.state = state
        self.rows: dict[str, dict[str, Any]] = {}
        self.min_updates = min_updates
        self._study, self._method, self._job = study, method, job
        self._store, self._sites = store, sites
        self._codec = codec = CODECS.get(study.federation.compression)
        self._compressor = None if codec is None else DownlinkCompressor(codec, dict(mirrors or {}), store)
        self._lock = threading.RLock()
        self._open = True  # false while the round is aggregated: a message is late then
        self._stopped = False  # for good
        self._sent: dict[str, Tensors] | None = None  # what the method has for each site in the current round
        self._updates: dict[str, Update] = {}
        self._declared: dict[str, int] = {}  # sample counts that sites declared at their start
        self._rejections: dict[str, str] = {}

    @property
    def mirrors(self) -> dict[str, Tensors]:
        """What each site holds, where tensors are compressed."""
        with self._lock:
            return {} if self._compressor is None else {s: dict(m) for s, m in self._compressor.mirrors.items()}

    def declare(self, site: str, samples: Any) -> None:
        """Record the sample count that a site declares at its start; a later declaration changes nothing."""
        with self._lock:
            if check_samples(samples) is None:
                self._declared.setdefault(site, int(samples))

    def is_held_out(self, site: str) -> bool:
        """Whether the site only scores."""
        return site in self._study.held_out

    def rejection(self, site: str) -> str:
        """Why the site's last update was rejected; empty if it was not."""
        with self._lock:
            return self._rejections.get(site, "")

    def mixture(self, site: str) -> Tensors | None:
        """The shared tensors that the method mixed for a site (`ServerState.per_site`), if it did."""
        with self._lock:
            return self.state.per_site.get(site)

    def dispatch(self, site: str, round_: int | None = None, held: str = "") -> Dispatch | None:
        """What `site` gets for the training of a round.

        Args:
            round_: the round that the site asks for; None: the current one.
            held: with compression, digest of the shared tensors that the site claims to hold.

        Returns:
            None for a held-out site, which gets the global model, and for a round that is not the current one.

        Raises:
            UpdateError: there is no room for what the sites hold; the server is stopped.
        """
        with self._lock:
            if self._stopped or self.is_held_out(site) or round_ not in (None, self.state.round):
                return None
            try:
                target = self._target(site)
                if self._compressor is None:
                    return Dispatch(target)
                if site not in self._compressor:
                    self._compressor.join(site, target, self.state.shared)
            except UpdateError:
                self._stopped = True
                raise
            return Dispatch(self._compressor.received(site), self._compressor.download(site, held))

    def _target(self, site: str) -> Tensors:
        """What the method sends to a site. A method may draw for all sites together, so it is asked once a round."""
        if self._sent is None:
            sites = sorted(self._sites())
            self._sent = self._method.dispatch(self.state, sites)
            if self._compressor is not None:
                self._compressor.advance(self._sent, self.state.shared)
        return self._sent.get(site, self.state.shared)  # the global model for a site that joins during the round

    def _received(self, site: str) -> Tensors:
        """The tensors that a site was sent, which its update is compared with."""
        target = self._target(site)
        if self._compressor is None:
            return target
        return self._compressor.received(site) if site in self._compressor else target

    def accept(self, message: Message) -> str | None:
        """Validate a message and store its update; returns the rejection reason, or None if it is accepted."""
        with self._lock:
            site, round_ = message.sender, message.round
            if self._stopped or not self._open or round_ != self.state.round:
                return "it arrived too late"
            if self.is_held_out(site):
                self.reject(site, round_, "held out", message.report)
                return "the site is held out"
            reason = self._accept(message)
            if reason is not None:
                reason = one_line(reason)
                self.reject(site, round_, reason, message.report)
                if site not in self._updates:
                    self._note_rejection(site, reason)
                return reason
            update = self._updates[site]
            self._declared.setdefault(site, update.samples)
            self._rejections.pop(site, None)
            sent = {"samples": update.samples, "bytes_up": sum(array.nbytes for array in message.arrays.values())}
            self.rows[site] = self._row(site, accepted=True, reason="") | report_columns(message.report) | sent
            return None

    def _accept(self, message: Message) -> str | None:
        site = message.sender
        if site in self._updates:
            return "a second update of the same site in one round"
        try:
            if reason := rejection_reason(message, self._expected(site), self._declared.get(site)):
                return reason
            tensors = self._store(decoded(message.arrays, self._received(site), self._codec))
        except UpdateError as error:  # a decoded value is not finite, or there is no room
            return error.line()
        self._updates[site] = Update(site, tensors, int(message.samples))
        return None

    def _expected(self, site: str) -> Expected:
        names = self._method.sent_names(self.state.round, tuple(self._target(site)))
        schema, base = partial(Schema.of_payload, self.state.shared), None
        if self._compressor is not None:
            base = self._compressor.holds(site) if site in self._compressor else ""
        shared, update = schema(self.state.shared, self._codec), schema(names, self._codec)
        return Expected(self._job, self.state.round, shared, update, base)

    def reject(self, site: str, round_: int, reason: str, report: Any = None) -> None:
        """Record that a site has no accepted update in a round: it failed, or it is held out.

        An update that was accepted before stays; so do the rows of an earlier round.
        """
        with self._lock:
            if self._open and round_ == self.state.round and site not in self._updates:
                self.rows[site] = self._row(site, accepted=False, reason=one_line(reason)) | report_columns(report)

    def _row(self, site: str, *, accepted: bool, reason: str) -> dict[str, Any]:
        row = {"round": self.state.round, "site": site, "accepted": accepted, "reason": reason, "note": ""}
        return row | {"held_out": self.is_held_out(site)}

    def close(self) -> ServerState:
        """Aggregate the round's updates; returns the server state before the next round.

        The order: limits on norm and sample share, the study's aggregation rule, the method. Messages that arrive
        from here on are late. The next round opens with `open_round`.

        Raises:
            UpdateError: fewer than `min_updates` updates are left.
        """
        with self._lock:
            self._open = False
            updates = sorted_by_site(list(self._updates.values()))
            sent = {update.site: self._received(update.site) for update in updates}
        spec = self._study.federation
        left = limit_norms(RoundUpdates(tuple(updates), sent, self._store), spec)
        for site, reason in left.rejected.items():
            del self._updates[site]
            self.rows[site] |= {"accepted": False, "reason": reason}
            self._note_rejection(site, reason)
        if len(left.updates) < self.min_updates:
            raise UpdateError(too_few_text(self.state.round, self.rows, len(left.updates), self.min_updates))
        shared_out = limit_shares(left.updates, spec.max_share)
        ruled = apply_rule(spec.aggregation, spec.byzantine_sites, RoundUpdates(shared_out.updates, sent, self._store))
        for notes in (left.notes, shared_out.notes, ruled.notes):
            for site, note in notes.items():
                self.rows[site]["note"] = "; ".join(filter(None, [self.rows[site]["note"], note]))
        state = self._method.aggregate(list(ruled.updates), self.state)
        with self._lock:
            self.state, self._sent = state, None
        return state

    def open_round(self) -> None:
        """Forget the updates and rows of the round that was closed."""
        with self._lock:
            self._updates, self.rows, self._open = {}, {}, True

    def drop_updates(self) -> None:
        """Forget the updates and keep the rows: a run ends in the middle of a round."""
        with self._lock:
            self._updates = {}

    def _note_rejection(self, site: str, reason: str) -> None:
        self._rejections[site] = f"the update of round {self.state.round} was rejected: {reason}"
