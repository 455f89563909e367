"""FedHEAL (Chen et al., CVPR 2024), server side: local consistency masks, weights that grow with the distance moved.

The paper's names: Delta_i = theta_global - theta_i (so that a step subtracts it), p_i a site's weight, delta_i its
smoothed growth, b = beta, tau = threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedfms.errors import StudyError, UpdateError
from fedfms.methods.base import ServerState, Tensors, Update
from fedfms.methods.fedavg import cast_back, in_order
from fedfms.methods.fedmsa import FedMSA


@dataclass(frozen=True)
class _Seen:
    """One site's update as the server sees it.

    `increases`: element by element, in how many of the site's `rounds` (this one included) Delta_i was >= 0; `kept`:
    the share of elements that its masks let through.
    """

    distance: float
    increases: Tensors
    rounds: int
    kept: float


class FedHEAL(FedMSA):
    """Aggregates element by element what each site has moved consistently, and listens more to those who moved far.

    A site's first round has no history: its masks are 1 and it begins with the mean weight of the sites known so far
    (1/N in round 0). An absent site keeps its history and its growth, and its share of the weights among all known
    sites neither rises nor falls.

    Args:
        threshold: tau, 0 <= tau < 1; an element counts where the share of past rounds that agree in sign is above it.
        beta: b, 0..1; how much of a round's distance enters the growth of a site's weight.

    Raises:
        StudyError: an option is out of its range.
    """

    name = "fedheal"
    paper = "FedHEAL, CVPR 2024"
    aggregates_by_mean = False

    def __init__(self, *, threshold: float = 0.3, beta: float = 0.4) -> None:
        if not 0 <= threshold < 1:
            raise StudyError(f"threshold is {threshold}", where=f"method {self.name}", do="from 0 to below 1")
        if not 0 <= beta <= 1:
            raise StudyError(f"beta is {beta}", where=f"method {self.name}", do="from 0 to 1")
        self._threshold = threshold
        self._beta = beta

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """theta_global - sum_i u_i mask_i Delta_i, u_i = p_i mask_i / sum_j p_j mask_j element by element.

        Raises:
            UpdateError: no updates.
        """
        ordered = in_order(updates)
        if not ordered:
            raise UpdateError("no updates to combine")
        known: Mapping[str, Any] = server.state.get("sites", {})
        seen = {update.site: self._see(update, server.shared, known.get(update.site)) for update in ordered}
        weights = self._weights({site: one.distance for site, one in seen.items()}, known)
        news = {site: {"rounds": one.rounds, "increases": one.increases} for site, one in seen.items()}
        sites = {site: {**known.get(site, {}), **news.get(site, {}), **weights[site]} for site in sorted(weights)}
        total = sum(weights[site]["p"] for site in seen)
        shares = {site: weights[site]["p"] / total for site in seen}
        shared = {name: self._step(name, ordered, known, shares, tensor) for name, tensor in server.shared.items()}
        notes = {"weights": shares, "kept": {site: one.kept for site, one in seen.items()}}
        return replace(server, round=server.round + 1, shared=shared, state={"sites": sites}, notes=notes)

    def _see(self, update: Update, shared: Tensors, past: Mapping[str, Any] | None) -> _Seen:
        """Masks by the history before this round, the distance under them, and the history with this round."""
        rounds = 1 if past is None else past["rounds"] + 1
        # The narrowest whole numbers that hold the counts: one byte an element up to 255 rounds.
        narrow = next(kind for kind in (torch.uint8, torch.int16, torch.int32) if rounds <= torch.iinfo(kind).max)
        increases, distance, kept = {}, 0.0, 0
        for name, tensor in shared.items():
            delta = _delta(tensor, update.tensors[name])
            mask, rose = self._mask(name, delta, past), delta >= 0
            before = torch.zeros_like(rose, dtype=narrow) if past is None else past["increases"][name].to(narrow)
            increases[name] = before + rose
            distance += float(torch.linalg.vector_norm(delta.mul_(mask)))
            kept += int(mask.sum())
        return _Seen(distance, increases, rounds, kept / sum(tensor.numel() for tensor in shared.values()))

    def _mask(self, name: str, delta: torch.Tensor, past: Mapping[str, Any] | None) -> torch.Tensor:
        """Which elements of one tensor count; made anew where it is needed, for of all sites they would fill memory."""
        rose = delta >= 0
        if past is None:
            return torch.ones_like(rose)
        return self._consistent(rose, past["increases"][name], past["rounds"])

    def _consistent(self, rose: torch.Tensor, increases: torch.Tensor, rounds: int) -> torch.Tensor:
        # Of counts, not of shares: 1 - 0.7 is not 0.3 in binary, and rising and falling must be treated alike.
        agreeing = torch.where(rose, increases, rounds - increases)
        return agreeing.to(torch.float64) / rounds > self._threshold

    def _step(
        self, name: str, ordered: Sequence[Update], known: Mapping[str, Any], shares: Mapping[str, float],
        old: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """One tensor of the new global model."""
        moved, weight = torch.zeros(old.shape, dtype=torch.float64), torch.zeros(old.shape, dtype=torch.float64)
        for update in ordered:
            delta = _delta(old, update.tensors[name])
            mask = self._mask(name, delta, known.get(update.site))
            moved.add_(delta.mul_(mask), alpha=shares[update.site])
            weight.add_(mask, alpha=shares[update.site])
        # Where every mask is 0, the paper's u_i = p_i weighs updates that are masked away: the element stays.
        step = moved / weight.where(weight > 0, 1.0)
        return cast_back(old.to(torch.float64) - step, old.dtype)

    def _weights(self, distances: Mapping[str, float], known: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """p_i and delta_i of every known site and newcomer after this round; p as they grow, not normalised."""
        start = sum(one["p"] for one in known.values()) / len(known) if known else 1 / len(distances)
        before = {site: known[site]["p"] if site in known else start for site in distances}
        total = sum(distances.values())
        after = {}
        for site, distance in distances.items():
            delta = (1 - self._beta) * (known[site]["delta"] if site in known else 0.0)
            if total > 0:  # else nobody moved, and nobody's weight grows by it
                delta += self._beta * distance / total
            after[site] = {"p": before[site] + delta, "delta": delta}
        growth = sum(one["p"] for one in after.values()) / sum(before.values())
        absent = {site: one for site, one in known.items() if site not in distances}
        return after | {site: {"p": one["p"] * growth, "delta": one["delta"]} for site, one in absent.items()}


def _delta(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return old.to(torch.float64) - new.to(torch.float64)
