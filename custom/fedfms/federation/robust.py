"""Rules that bear faulty sites, in the place of FedAvg's mean: each makes other updates of a round's, which the method
then averages.

None looks at sample counts but `norm_clip`: a faulty site may claim any. All are over whole tensors as the sites sent
them, in the order of the sites' names, so that the order of arrival changes no bit. How many updates each needs is in
`fedfms.study.AGGREGATION_RULES`; a study that can have rounds of fewer is not built.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from fedfms.compression import Keep
from fedfms.errors import UpdateError
from fedfms.federation.elementwise import distances, norm, reduced
from fedfms.methods import Tensors, Update
from fedfms.methods.fedavg import cast_back, in_order
from fedfms.study import too_few_updates


@dataclass(frozen=True)
class Round:
    """A round's updates, what each site was sent, and where a changed update stays."""

    updates: tuple[Update, ...]
    sent: Mapping[str, Tensors]
    keep: Keep


@dataclass(frozen=True)
class Combined:
    """The updates that the method is to average, and by site what a rule did to its own."""

    updates: tuple[Update, ...]
    notes: Mapping[str, str] = field(default_factory=dict)


def robust(combine: str, faulty: int, of: Round) -> Combined:
    """A round's updates by a rule of `RULES`.

    Raises:
        UpdateError: too few updates for so many faulty sites.
    """
    if reason := too_few_updates(combine, faulty, len(of.updates)):
        raise UpdateError(reason, do="wait for more sites, or lower federation.byzantine_sites")
    return RULES[combine](replace(of, updates=tuple(in_order(of.updates))), faulty)


def clipped(update: Update, start: Tensors, by: float, keep: Keep) -> Update:
    """The update with its difference to `start` times `by`; one tensor in memory at a time."""

    def shorter() -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in update.tensors.items():
            old = start[name].to(torch.float64)
            yield name, cast_back(old + by * (tensor.to(torch.float64) - old), tensor.dtype).numpy()

    return replace(update, tensors=keep(shorter()))


def _mean(of: Round, faulty: int) -> Combined:
    return Combined(of.updates)


def _median(of: Round, faulty: int) -> Combined:
    """Coordinate-wise median (Yin et al., ICML 2018, definition 1): of an even number, the mean of the middle two."""
    half = len(of.updates) // 2
    odd = len(of.updates) % 2
    return _of_all(of, lambda block: block.sort(dim=0).values[half - 1 + odd : half + 1].mean(dim=0))


def _trimmed_mean(of: Round, faulty: int) -> Combined:
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018, definition 2): without the f largest and f smallest."""
    last = len(of.updates) - faulty
    return _of_all(of, lambda block: block.sort(dim=0).values[faulty:last].mean(dim=0))


def _krum(of: Round, faulty: int, several: bool = False) -> Combined:
    """Krum (Blanchard et al., NeurIPS 2017, section 4): the update whose n - f - 2 nearest others are nearest, by the
    sum of squared distances. `several`: multi-Krum, the plain mean of the n - f - 2 best; of so many El-Mhamdi et al.
    (ICML 2018) show that they bear f faulty ones. Of equals the first by name.
    """
    near = len(of.updates) - faulty - 2
    apart = distances([update.tensors for update in of.updates])
    scores = apart.sort(dim=1).values[:, 1 : near + 1].sum(dim=1)  # the first is the update itself
    best = scores.argsort(stable=True)[: near if several else 1].tolist()
    chosen = tuple(replace(of.updates[index], samples=1) for index in sorted(best))
    name, taken = ("multi-Krum" if several else "Krum"), {update.site for update in chosen}
    return Combined(chosen, {u.site: f"left out by {name}" for u in of.updates if u.site not in taken})


def _norm_clip(of: Round, faulty: int) -> Combined:
    """Norm clipping (Sun et al., 2019, arXiv 1911.07963, section 4): no update is longer than the round's median one.

    The paper's bound is a number that somebody sets; the median, which fewer than half of the sites cannot move beyond
    the others' lengths, needs none. The mean stays weighted by sample counts.
    """
    norms = {update.site: norm(update.tensors, of.sent[update.site]) for update in of.updates}
    longest = statistics.median(norms.values())
    updates, notes = [], {}
    for update in of.updates:
        if norms[update.site] > longest:
            by = longest / norms[update.site]
            notes[update.site] = f"clipped to {by:.3g} of its length"
            update = clipped(update, of.sent[update.site], by, of.keep)
        updates.append(update)
    return Combined(tuple(updates), notes)


def _of_all(of: Round, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Combined:
    """One update in the place of all, of weight 1: the method's mean leaves it as it is, bit for bit."""
    return Combined((Update("", reduced([update.tensors for update in of.updates], reduce), 1),))


RULES: Mapping[str, Callable[[Round, int], Combined]] = {
    "mean": _mean,
    "median": _median,
    "trimmed_mean": _trimmed_mean,
    "krum": _krum,
    "multi_krum": partial(_krum, several=True),
    "norm_clip": _norm_clip,
}
