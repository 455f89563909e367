"""How far local training moves each layer of the model in a round (FedFMS, Fig. 3)."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping

from fedfms.methods import Tensors

_BLOCK = re.compile(r".*?\b(?:layers|blocks)\.\d+(?:\.blocks\.\d+)?(?=\.)")


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: its block, or its part of the network if it is in no block."""
    block = _BLOCK.match(name)
    return block[0] if block else name.split(".", 1)[0]


def layer_shift(pairs: Iterable[tuple[Tensors, Tensors]]) -> dict[str, float]:
    """Root mean square change of each layer's parameters in a round, mean over sites.

    The change is absolute, not relative: adapters are initialised to zero.

    Args:
        pairs: for each site, the received and the trained tensors. Tensors that only one of them has are ignored.
    """
    return mean_by_layer(_site_shift(received, trained) for received, trained in pairs)


def mean_by_layer(shifts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """For each layer the mean over the shifts that include it; over rounds, for example."""
    rows = list(shifts)
    layers = dict.fromkeys(layer for row in rows for layer in row)
    return {layer: statistics.fmean([row[layer] for row in rows if layer in row]) for layer in layers}


def _site_shift(received: Tensors, trained: Tensors) -> dict[str, float]:
    squares: dict[str, tuple[float, int]] = {}
    for name in (name for name in received if name in trained):  # in a fixed order, for bit-equal sums
        total, count = squares.get(layer_of(name), (0.0, 0))
        change = trained[name].double() - received[name].double()
        squares[layer_of(name)] = total + float(change.square().sum()), count + change.numel()
    return {layer: math.sqrt(total / count) for layer, (total, count) in squares.items() if count}
