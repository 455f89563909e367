"""Robust aggregation: limits on an update's norm and sample share, and rules that tolerate Byzantine sites.

A rule replaces a round's updates, and the method averages the new ones. Only `norm_clip`
looks at sample counts, because a Byzantine site may claim any. Rules work on whole tensors in the order of the sites'
names, so that the order of arrival changes no bit. `fedfms.study.AGGREGATION_RULES` has the number of updates that each
needs.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from fedfms.compression import ArrayStore
from fedfms.errors import UpdateError
from fedfms.federation.elementwise import distances, norm, reduced
from fedfms.methods import Tensors, Update
from fedfms.methods.fedavg import cast_back, sorted_by_site
from fedfms.study import FederationSpec, too_few_updates

MIN_UPDATES_FOR_MEDIAN = 3  # of two lengths, neither is the outlier


@dataclass(frozen=True)
class RoundUpdates:
    """A round's updates, the tensors that each site was sent, and the store for updates that a rule changes."""

    updates: tuple[Update, ...]
    sent: Mapping[str, Tensors]
    store: ArrayStore


@dataclass(frozen=True)
class Outcome:
    """The updates that are left; by site, why one was rejected and what was done to another."""

    updates: tuple[Update, ...]
    rejected: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def limit_norms(of: RoundUpdates, spec: FederationSpec) -> Outcome:
    """Reject or clip updates that are much longer than the median one (`norm_factor`, `norm_action`).

    Short updates stay: they move the model little.
    """
    if spec.norm_factor is None or len(of.updates) < MIN_UPDATES_FOR_MEDIAN:
        return Outcome(of.updates)
    norms = {update.site: norm(update.tensors, of.sent[update.site]) for update in of.updates}
    median = statistics.median(norms.values())
    limit = spec.norm_factor * median
    left, rejected, notes = [], {}, {}
    for update in of.updates:
        length = norms[update.site]
        if median and length > limit:  # where most updates are zero, none counts as long
            times = f"it is {length / median:.3g} times as long as the round's median update"
            if spec.norm_action == "reject":
                rejected[update.site] = f"{times}, and the limit is {spec.norm_factor:g} times"
                continue
            notes[update.site] = f"clipped: {times}"
            update = clipped(update, of.sent[update.site], limit / length, of.store)
        left.append(update)
    return Outcome(tuple(left), rejected, notes)


def limit_shares(updates: Sequence[Update], max_share: float | None) -> Outcome:
    """Lower the sample counts of sites that have more than `max_share` of the round's samples."""
    if max_share is None:
        return Outcome(tuple(updates))
    counts = capped([update.samples for update in updates], max_share)
    notes = {
        update.site: f"counts for {count} of its {update.samples} samples: max_share is {max_share:g}"
        for update, count in zip(updates, counts, strict=True)
        if count < update.samples
    }
    return Outcome(tuple(replace(u, samples=count) for u, count in zip(updates, counts, strict=True)), notes=notes)


def capped(counts: Sequence[int], max_share: float) -> list[int]:
    """Sample counts of which none exceeds the share `max_share` (0..1] of their new sum; equal ones where impossible.

    The largest are lowered to one count c, which is `max_share` of the new sum; rounded down, and at least 1.
    """
    ranked = sorted(counts, reverse=True)
    for lowered, largest in enumerate(ranked):
        rest = sum(ranked[lowered:])
        if lowered * max_share >= 1:
            break
        level = rest * max_share / (1 - lowered * max_share)  # of each lowered count
        if largest <= level:
            return [min(count, max(1, int(level))) if lowered else count for count in counts]
    return [ranked[-1]] * len(counts)


def apply_rule(rule: str, byzantine: int, of: RoundUpdates) -> Outcome:
    """A round's updates after the rule of that name in `RULES`.

    Raises:
        UpdateError: too few updates for that many Byzantine sites.
    """
    if reason := too_few_updates(rule, byzantine, len(of.updates)):
        raise UpdateError(reason, do="wait for more sites, or lower federation.byzantine_sites")
    return RULES[rule](replace(of, updates=tuple(sorted_by_site(of.updates))), byzantine)


def clipped(update: Update, start: Tensors, factor: float, store: ArrayStore) -> Update:
    """The update with its difference to `start` scaled by `factor`; one tensor in memory at a time."""

    def scaled() -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in update.tensors.items():
            old = start[name].to(torch.float64)
            yield name, cast_back(old + factor * (tensor.to(torch.float64) - old), tensor.dtype).numpy()

    return replace(update, tensors=store(scaled()))


def _mean(of: RoundUpdates, byzantine: int) -> Outcome:
    return Outcome(of.updates)


def _median(of: RoundUpdates, byzantine: int) -> Outcome:
    """Coordinate-wise median (Yin et al., ICML 2018, definition 1); the mean of the middle two of an even number."""
    half = len(of.updates) // 2
    odd = len(of.updates) % 2
    return _single(of, lambda block: block.sort(dim=0).values[half - 1 + odd : half + 1].mean(dim=0))


def _trimmed_mean(of: RoundUpdates, byzantine: int) -> Outcome:
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018, definition 2): without the f largest and f smallest."""
    last = len(of.updates) - byzantine
    return _single(of, lambda block: block.sort(dim=0).values[byzantine:last].mean(dim=0))


def _krum(of: RoundUpdates, byzantine: int, several: bool = False) -> Outcome:
    """Krum (Blanchard et al., NeurIPS 2017, section 4): the update with the smallest sum of squared distances to its
    n - f - 2 nearest others; the first by name of equal ones.

    Args:
        several: multi-Krum, the plain mean of the n - f - 2 best; El-Mhamdi et al. (ICML 2018) prove that many safe.
    """
    near = len(of.updates) - byzantine - 2
    apart = distances([update.tensors for update in of.updates])
    scores = apart.sort(dim=1).values[:, 1 : near + 1].sum(dim=1)  # the first is the update itself
    best = scores.argsort(stable=True)[: near if several else 1].tolist()
    chosen = tuple(replace(of.updates[index], samples=1) for index in sorted(best))
    name, sites = ("multi-Krum" if several else "Krum"), {update.site for update in chosen}
    return Outcome(chosen, notes={u.site: f"left out by {name}" for u in of.updates if u.site not in sites})


def _norm_clip(of: RoundUpdates, byzantine: int) -> Outcome:
    """Norm clipping (Sun et al., 2019, arXiv 1911.07963, section 4): no update is longer than the round's median one.

    The paper's bound is a constant. The median needs no tuning, and fewer than half of the sites cannot move it beyond
    the others' lengths. The mean stays weighted by sample counts.
    """
    norms = {update.site: norm(update.tensors, of.sent[update.site]) for update in of.updates}
    limit = statistics.median(norms.values())
    updates, notes = [], {}
    for update in of.updates:
        if norms[update.site] > limit:
            factor = limit / norms[update.site]
            notes[update.site] = f"clipped to {factor:.3g} of its length"
            update = clipped(update, of.sent[update.site], factor, of.store)
        updates.append(update)
    return Outcome(tuple(updates), notes=notes)


def _single(of: RoundUpdates, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Outcome:
    """One update of weight 1 in place of all: the method's mean leaves it unchanged, bit for bit."""
    return Outcome((Update("", reduced([update.tensors for update in of.updates], reduce), 1),))


RULES: Mapping[str, Callable[[RoundUpdates, int], Outcome]] = {
    "mean": _mean,
    "median": _median,
    "trimmed_mean": _trimmed_mean,
    "krum": _krum,
    "multi_krum": partial(_krum, several=True),
    "norm_clip": _norm_clip,
}
