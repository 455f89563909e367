"""FedAvg's aggregation (McMahan et al., AISTATS 2017): the mean of the updates, weighted by sample count."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedfms.errors import UpdateError
from fedfms.methods.base import Method, ServerState, Tensors, Update

# Elements per thread and block: the float64 sum and one widened part are 1 MiB, which fits a core's cache, and the
# overhead of the calls is small.
_BLOCK = 1 << 16


def sorted_by_site(updates: Sequence[Update]) -> list[Update]:
    """The updates in the order of their sites' names, so that sums do not depend on the order of arrival."""
    return sorted(updates, key=lambda update: update.site)


def weighted_sum(parts: Sequence[Tensors], weights: Sequence[float], by: float = 1.0) -> Tensors:
    """sum_i w_i S_i / by, in float64 and in the given order, cast back to the tensors' dtype.

    Dividing last makes the mean of equal tensors equal to them, to the bit. Every part is read once; memory holds the
    result and a few blocks, for any number of parts.
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
    """Cast a float64 result to `dtype`; round it for an integer dtype."""
    return total.to(dtype) if dtype.is_floating_point else total.round().to(dtype)


def weighted_mean(updates: Sequence[Update]) -> Tensors:
    """sum_i n_i S_i / sum_i n_i: the mean of the updates weighted by their sample counts.

    Independent of the order of arrival; the sum is in float64, the mean in the updates' dtype.

    Raises:
        UpdateError: no updates, or no samples.
    """
    ordered = sorted_by_site(updates)
    total = sum(update.samples for update in ordered)
    if total <= 0:
        raise UpdateError("no samples to average over")
    return weighted_sum([update.tensors for update in ordered], [update.samples for update in ordered], by=total)


class FedAvg(Method):
    """Sample-weighted averaging of all shared tensors."""

    aggregates_by_mean = True

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """See `weighted_mean`."""
        return replace(server, round=server.round + 1, shared=weighted_mean(updates), notes={})
