"""The gate between the sites and a method's `aggregate`: what of a round's messages gets in, and in what measure.

The federation's aggregator and the in-process reference loop ask the same `Guard`, so that both say the same of the
same update. What one update shows by itself is looked at when it comes (`Guard.take`), what only all of them show when
the round is closed (`Guard.aggregation`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedfms.compression import Codec, Keep, in_memory, layout, read_upload
from fedfms.errors import UpdateError
from fedfms.federation.elementwise import norm
from fedfms.federation.robust import Round, clipped, robust
from fedfms.federation.rows import numbers, one_line, too_thin
from fedfms.federation.validation import Schema, check_dice, check_hash, check_names, check_samples, check_tensors
from fedfms.methods import Method, ServerState, Tensors, Update
from fedfms.methods.fedavg import in_order
from fedfms.study import FederationSpec

FEWEST_FOR_A_MEDIAN = 3  # of two lengths none is the odd one
WEIGHTS, DIFFERENCES = "weights", "differences"  # kinds of message; another's name is whatever it says of itself


@dataclass(frozen=True)
class Message:
    """What came from a site, before any of it is believed; everything but `sender` may be anything.

    `sender`: whom the connection proves it to be from; `names`: whom it says that it is from; `rounds`: all that say
    of which round it is; `schema`: `Schema.hash` of the site's own model; `base`: digest of what differences are to;
    `report`: the site's numbers.
    """

    sender: str
    names: tuple[Any, ...]
    job: Any
    rounds: tuple[Any, ...]
    kind: str
    schema: Any
    samples: Any
    arrays: Mapping[str, Any]
    base: Any = None
    dice: Any = None
    report: Any = None


@dataclass(frozen=True)
class Expected:
    """What a site's message must be: `agreed` is the schema of all shared tensors, `schema` that of this update.

    `base`: digest of what its differences must be to; None where it sends weights, empty where it was sent nothing.
    """

    job: str
    round: int
    agreed: Schema
    schema: Schema
    base: str | None = None


def agreed(like: Tensors, names: Sequence[str], codec: Codec | None) -> Schema:
    """What both sides compute when the job begins: the shared tensors' form on the wire (values do not matter)."""
    return Schema(layout({name: like[name] for name in names}, codec))


def decoded(arrays: Mapping[str, np.ndarray], received: Tensors, codec: Codec | None) -> Iterator[tuple[str, Any]]:
    """The whole arrays of a message that `Guard.take` had nothing against, made one after another.

    Raises:
        UpdateError: one is not finite once it is decoded.
    """
    for name, array in arrays.items():
        if codec is None:
            yield name, array
            continue
        tensors = read_upload({name: array}, received, codec)
        whole = {name: tensors[name].numpy()}
        if reason := check_tensors(whole, Schema.of(tensors)):
            raise UpdateError(reason)
        yield name, whole[name]


class Guard:
    """A run's gate. `rows`: of the round, one by site; `told`: what a site whose update was not used is to hear.

    Args:
        needed: updates that a round needs.
    """

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self._declared: dict[str, int] = {}
        self._updates: dict[str, Update] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.told: dict[str, str] = {}

    def begin(self) -> None:
        """Forget the round that was combined."""
        self._updates, self.rows = {}, {}

    def drop(self) -> None:
        """Forget the updates, and keep the rows: a run ends in the middle of a round."""
        self._updates = {}

    def declare(self, site: str, samples: Any) -> None:
        """What a site says at its start that it trains on. The first word counts: a later one raises nothing."""
        if check_samples(samples) is None:
            self._declared.setdefault(site, int(samples))

    def __contains__(self, site: object) -> bool:
        """Whether an update of the site is in."""
        return site in self._updates

    def fail(self, site: str, round_: int, reason: str, *, held_out: bool = False, report: Any = None) -> None:
        """A site has no update to give: its error, or that it only scores. Never hides one that is in."""
        if site not in self._updates:
            row = {"round": round_, "site": site, "accepted": False, "reason": one_line(reason), "note": ""}
            self.rows[site] = row | {"held_out": held_out} | numbers(report)

    def take(self, message: Message, expected: Expected, make: Callable[[], Tensors]) -> str | None:
        """Let a message in, or say why not.

        Args:
            make: the tensors of a message that has passed; may raise UpdateError.
        """
        site, reason = message.sender, self._refusal(message, expected)
        if reason is None:
            try:
                self._updates[site] = Update(site, make(), int(message.samples))
            except UpdateError as error:
                reason = error.line()
        if reason is not None:
            reason = one_line(reason)
            self.fail(site, expected.round, reason, report=message.report)
            if site not in self._updates:
                self._tell(site, expected.round, reason)
            return reason
        self._declared.setdefault(site, self._updates[site].samples)
        self.told.pop(site, None)
        sent = {"samples": self._updates[site].samples, "bytes_up": sum(a.nbytes for a in message.arrays.values())}
        row = {"round": expected.round, "site": site, "accepted": True, "reason": "", "note": "", "held_out": False}
        self.rows[site] = row | numbers(message.report) | sent
        return None

    def _refusal(self, message: Message, expected: Expected) -> str | None:
        """Why a message may not be aggregated, or None; of a coded one, why it may not be decoded. What costs least
        comes first: no array is looked at before who sent it, for when and how much of it there is.
        """
        if any(not isinstance(name, str) or name != message.sender for name in message.names):
            return "it speaks for another site than the one that sent it"
        if message.sender in self._updates:
            return "a second update of the same site in one round"
        if not isinstance(message.job, str) or message.job != expected.job:
            return "it is of another job"
        kind = WEIGHTS if expected.base is None else DIFFERENCES
        if message.kind != kind:
            return f"it holds {message.kind}, not {kind}"
        # Whatever a site may have put there: to compare an array raises, and would end the round for all.
        if not all(type(of) is int and of == expected.round for of in message.rounds):
            told = message.rounds[-1] if type(message.rounds[-1]) is int else "unknown"
            return f"it is of round {told}, not of round {expected.round}"
        if expected.base is not None and not (isinstance(message.base, str) and message.base == expected.base != ""):
            return "its differences are to another model than it was sent"
        return (
            check_samples(message.samples, self._declared.get(message.sender))
            or check_dice(message.dice)
            or check_names(message.arrays, expected.schema)
            or check_tensors(message.arrays, expected.schema)
            or check_hash(message.schema, expected.agreed)
        )

    def aggregate(
        self,
        method: Method,
        server: ServerState,
        sent: Mapping[str, Tensors],
        by: FederationSpec,
        keep: Keep = in_memory,
    ) -> ServerState:
        """The server after the round: lengths, shares, the study's rule, then the method.

        Args:
            sent: what each site was sent, and its update is held against.

        Raises:
            UpdateError: too few updates are left.
        """
        updates = self._in_length(in_order(list(self._updates.values())), sent, server.round, by, keep)
        if len(updates) < self.needed:
            raise UpdateError(too_thin(server.round, self.rows, len(updates), self.needed))
        updates = self._shared_out(updates, by.max_share)
        of = Round(tuple(updates), sent, keep)
        combined = robust(by.aggregation, by.byzantine_sites, of)
        for site, note in combined.notes.items():
            self._note(site, note)
        return method.aggregate(list(combined.updates), server)

    def _in_length(
        self, updates: Sequence[Update], sent: Mapping[str, Tensors], round_: int, by: FederationSpec, keep: Keep
    ) -> list[Update]:
        """Without the updates that are too long beside the median one, or with them cut to what is allowed.

        Short ones stay: who has moved little moves nobody far.
        """
        if by.norm_factor is None or len(updates) < FEWEST_FOR_A_MEDIAN:
            return list(updates)
        norms = {update.site: norm(update.tensors, sent[update.site]) for update in updates}
        median = statistics.median(norms.values())
        most, left = by.norm_factor * median, []
        for update in updates:
            if median and norms[update.site] > most:  # where most have not moved at all, nothing is long
                times = f"{norms[update.site] / median:.3g} times as long as the round's median update"
                if by.norm_action == "reject":
                    self._reject(update.site, round_, f"it is {times}, and {by.norm_factor:g} times is the most")
                    continue
                update = clipped(update, sent[update.site], most / norms[update.site], keep)
                self._note(update.site, f"clipped: it was {times}")
            left.append(update)
        return left

    def _shared_out(self, updates: Sequence[Update], most: float | None) -> list[Update]:
        """With sample counts lowered where a site has more than its share of the round's."""
        if most is None:
            return list(updates)
        counts = capped([update.samples for update in updates], most)
        for update, count in zip(updates, counts, strict=True):
            if count < update.samples:
                self._note(update.site, f"counts for {count} of its {update.samples} samples: {most:g} of all at most")
        return [replace(update, samples=count) for update, count in zip(updates, counts, strict=True)]

    def _reject(self, site: str, round_: int, reason: str) -> None:
        del self._updates[site]
        self.rows[site] |= {"accepted": False, "reason": reason}
        self._tell(site, round_, reason)

    def _tell(self, site: str, round_: int, reason: str) -> None:
        self.told[site] = f"the update of round {round_} was not used: {reason}"

    def _note(self, site: str, note: str) -> None:
        self.rows[site]["note"] = "; ".join(filter(None, [self.rows[site]["note"], note]))


def capped(counts: Sequence[int], most: float) -> list[int]:
    """Sample counts with none above the share `most` (0..1] of their new sum; equal ones where that cannot be.

    The largest are lowered to one count c, such that c is `most` of what then is the sum; rounded down, 1 at least.
    """
    ranked = sorted(counts, reverse=True)
    for lowered, largest in enumerate(ranked):
        rest = sum(ranked[lowered:])
        if lowered * most >= 1:
            break
        level = rest * most / (1 - lowered * most)  # of each lowered one
        if largest <= level:
            return [min(count, max(1, int(level))) if lowered else count for count in counts]
    return [ranked[-1]] * len(counts)
