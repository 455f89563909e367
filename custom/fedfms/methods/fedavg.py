"""FedAvg's server side (McMahan et al., AISTATS 2017): the mean of the updates, weighted by sample count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedfms.errors import UpdateError
from fedfms.methods.base import Method, ServerState, Tensors, Update

# Elements that a thread takes at a time: the sum and one part of it, widened, are 1 MiB then, which stays in a core's
# cache, and the calls that it takes weigh little.
_BLOCK = 1 << 16


def in_order(updates: Sequence[Update]) -> list[Update]:
    """The updates by name of their site: sums in this order do not depend on who answered first."""
    return sorted(updates, key=lambda update: update.site)


def weighted(parts: Sequence[Tensors], weights: Sequence[float], by: float = 1.0) -> Tensors:
    """sum_i w_i S_i / by, in float64 and in the order given, cast back to the tensors' own dtype.

    Dividing at the end keeps the mean of equal tensors equal to them, bit for bit. Each part is read once; memory
    holds the result and a few blocks, for any number of parts.
    """
    if len(weights) != len(parts):
        raise ValueError(f"{len(weights)} weights for {len(parts)} parts")
    block = _BLOCK * torch.get_num_threads()
    work = torch.empty(2, block, dtype=torch.float64)
    out: Tensors = {}
    for name, first in parts[0].items():
        out[name] = torch.empty(first.shape, dtype=first.dtype)
        pieces = [part[name].reshape(-1).split(block) for part in parts]
        for index, target in enumerate(out[name].view(-1).split(block)):
            total, wide = work[:, : target.numel()]
            total.zero_()
            for piece, weight in zip(pieces, weights, strict=True):
                total.add_(wide.copy_(piece[index]), alpha=weight)
            target.copy_(cast_back(total.div_(by), first.dtype))
    return out


def cast_back(total: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float64 result in the dtype of what it was made of; whole numbers are rounded."""
    return total.to(dtype) if dtype.is_floating_point else total.round().to(dtype)


def weighted_mean(updates: Sequence[Update]) -> Tensors:
    """Mean of the updates weighted by their sample counts: sum_i n_i S_i / sum_i n_i.

    Adds in the order of the sites' names and in float64, so that neither arrival nor a narrow dtype changes the
    result; the mean has the dtype of the updates.

    Raises:
        UpdateError: no updates, or not one sample among them.
    """
    ordered = in_order(updates)
    total = sum(update.samples for update in ordered)
    if total <= 0:
        raise UpdateError("no samples to average over")
    return weighted([update.tensors for update in ordered], [update.samples for update in ordered], by=total)


class FedAvg(Method):
    """Sample-weighted averaging of all that is shared."""

    aggregates_by_mean = True

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """See `weighted_mean`."""
        return replace(server, round=server.round + 1, shared=weighted_mean(updates), notes={})
