"""FedAvg's server side (McMahan et al., AISTATS 2017): the mean of the updates, weighted by sample count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedfms.errors import UpdateError
from fedfms.methods.base import Combined, Method, Tensors, Update


def weighted_mean(updates: Sequence[Update]) -> Tensors:
    """Mean of the updates weighted by their sample counts: sum_i n_i S_i / sum_i n_i.

    Adds in the order of the sites' names and in float64, so that neither arrival nor a narrow dtype changes the
    result; the mean has the dtype of the updates.

    Raises:
        UpdateError: no updates, or not one sample among them.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    total = sum(update.samples for update in ordered)
    if total <= 0:
        raise UpdateError("no samples to average over")
    mean: Tensors = {}
    for name, first in ordered[0].tensors.items():
        accumulated = torch.zeros(first.shape, dtype=torch.float64)
        for update in ordered:
            accumulated.add_(update.tensors[name].to(torch.float64), alpha=update.samples)
        mean[name] = accumulated.div_(total).to(first.dtype)
    return mean


class FedAvg(Method):
    """Sample-weighted averaging of all that is trained."""

    def combine(self, updates: Sequence[Update], state: Mapping[str, Any]) -> Combined:
        """See `weighted_mean`; keeps no state."""
        return Combined(shared=weighted_mean(updates))
