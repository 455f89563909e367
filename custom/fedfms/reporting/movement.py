"""How far training at the sites moves each layer: FedFMS, Fig. 3."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping

from fedfms.methods import Tensors

_BLOCK = re.compile(r".*?\b(?:layers|blocks)\.\d+(?:\.blocks\.\d+)?(?=\.)")


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: its block, or else its part of the network."""
    block = _BLOCK.match(name)
    return block[0] if block else name.split(".", 1)[0]


def shift(pairs: Iterable[tuple[Tensors, Tensors]]) -> dict[str, float]:
    """Root of the mean square change of a layer's parameters in a round, mean over sites, by layer.

    Args:
        pairs: of each site, the tensors that it received and what it made of them; what is in one of them only is
            left out. A change and no ratio: adapters begin at zero.
    """
    by_site = [_of_site(received, made) for received, made in pairs]
    layers = {layer: None for each in by_site for layer in each}
    return {layer: statistics.fmean([each[layer] for each in by_site if layer in each]) for layer in layers}


def _of_site(received: Tensors, made: Tensors) -> dict[str, float]:
    squares: dict[str, tuple[float, int]] = {}
    for name in (name for name in received if name in made):  # in one order: a sum's last bit hangs on it
        total, count = squares.get(layer_of(name), (0.0, 0))
        change = made[name].double() - received[name].double()
        squares[layer_of(name)] = total + float(change.square().sum()), count + change.numel()
    return {layer: math.sqrt(total / count) for layer, (total, count) in squares.items() if count}


def mean_over_rounds(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean over rounds of what `shift` gave for each, by layer."""
    known = list(rows)
    layers = {layer: None for row in known for layer in row}
    return {layer: statistics.fmean([row[layer] for row in known if layer in row]) for layer in layers}
