"""FedHEAL's aggregation (Chen et al., CVPR 2024): consistency masks, and weights that grow with the distance moved.

The paper's names: Delta_i = theta_global - theta_i (a step subtracts it), p_i a site's weight, delta_i its smoothed
growth, b = beta, tau = threshold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field

from fedfms.errors import UpdateError
from fedfms.methods.base import ServerState, Tensors, Update
from fedfms.methods.fedavg import cast_back, sorted_by_site
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.options import checked
from fedfms.schema import Float


class FedHEAL(FedMSA):
    """Aggregates, element by element, the changes that are consistent over a site's rounds; sites that move far weigh
    more.

    In its first round a site has no history: its masks are 1, and its weight is the mean weight of the known sites
    (1/N in round 0). An absent site keeps its history, its growth and its share of the weights of all known sites.

    Args:
        threshold: tau; an element counts if the share of past rounds with the same sign is above it.
        beta: b; how much of a round's distance enters the growth of a site's weight.
    """

    name = "fedheal"
    paper = "FedHEAL, CVPR 2024"
    aggregates_by_mean = False

    @checked
    def __init__(
        self, *, threshold: Annotated[Float, Field(ge=0, lt=1)] = 0.3, beta: Annotated[Float, Field(ge=0, le=1)] = 0.4
    ) -> None:
        self._threshold, self._beta = threshold, beta

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """theta_global - sum_i u_i mask_i Delta_i, u_i = p_i mask_i / sum_j p_j mask_j, for each element.

        Raises:
            UpdateError: no updates.
        """
        ordered = sorted_by_site(updates)
        if not ordered:
            raise UpdateError("no updates to aggregate")
        known: Mapping[str, Any] = server.state.get("sites", {})
        history, distances, unmasked = {}, {}, {}
        for update in ordered:
            history[update.site], distances[update.site], unmasked[update.site] = self._measure(
                update, server.shared, known.get(update.site)
            )
        weights = self._weights(distances, known)
        sites = {site: {**known.get(site, {}), **history.get(site, {}), **weights[site]} for site in sorted(weights)}
        total = sum(weights[site]["p"] for site in distances)
        shares = {site: weights[site]["p"] / total for site in distances}
        shared = {name: self._step(name, ordered, known, shares, tensor) for name, tensor in server.shared.items()}
        notes = {"weights": shares, "unmasked": unmasked}
        return replace(server, round=server.round + 1, shared=shared, state={"sites": sites}, notes=notes)

    def _measure(
        self, update: Update, shared: Tensors, past: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], float, float]:
        """A site's history including this round, and, under the masks from its history before this round, the distance
        moved and the share of unmasked elements.

        History: for each element, `increases` is the number of the site's `rounds` with Delta_i >= 0.
        """
        rounds = 1 if past is None else past["rounds"] + 1
        # The smallest integers that hold the counts: one byte per element up to 255 rounds.
        narrow = next(kind for kind in (torch.uint8, torch.int16, torch.int32) if rounds <= torch.iinfo(kind).max)
        increases, distance, unmasked = {}, 0.0, 0
        for name, tensor in shared.items():
            delta = _delta(tensor, update.tensors[name])
            mask, rose = self._mask(name, delta, past), delta >= 0
            before = torch.zeros_like(rose, dtype=narrow) if past is None else past["increases"][name].to(narrow)
            increases[name] = before + rose
            distance += float(torch.linalg.vector_norm(delta.mul_(mask)))
            unmasked += int(mask.sum())
        elements = sum(tensor.numel() for tensor in shared.values())
        return {"rounds": rounds, "increases": increases}, distance, unmasked / elements

    def _mask(self, name: str, delta: torch.Tensor, past: Mapping[str, Any] | None) -> torch.Tensor:
        """Mask of one tensor (bool). It is computed twice: storing those of all sites would fill memory."""
        rose = delta >= 0
        if past is None:
            return torch.ones_like(rose)
        # From counts, not from shares: 1 - 0.7 is not 0.3 in binary, and both signs must be treated alike.
        increases, rounds = past["increases"][name], past["rounds"]
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
        # Where every mask is 0, the paper's u_i = p_i would weight masked changes; here the element is unchanged.
        step = moved / weight.where(weight > 0, 1.0)
        return cast_back(old.to(torch.float64) - step, old.dtype)

    def _weights(self, distances: Mapping[str, float], known: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """p_i and delta_i of every known and new site after this round; p grows and is not normalised."""
        start = sum(one["p"] for one in known.values()) / len(known) if known else 1 / len(distances)
        before = {site: known[site]["p"] if site in known else start for site in distances}
        total = sum(distances.values())
        after = {}
        for site, distance in distances.items():
            delta = (1 - self._beta) * (known[site]["delta"] if site in known else 0.0)
            if total > 0:  # else no site moved
                delta += self._beta * distance / total
            after[site] = {"p": before[site] + delta, "delta": delta}
        growth = sum(one["p"] for one in after.values()) / sum(before.values())
        absent = {site: one for site, one in known.items() if site not in distances}
        return after | {site: {"p": one["p"] * growth, "delta": one["delta"]} for site, one in absent.items()}


def _delta(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return old.to(torch.float64) - new.to(torch.float64)
