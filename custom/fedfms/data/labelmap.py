"""Combines one mask per structure into one map of label values, as the data contract stores them.

A structure lies within another if its label values are a subset of the other's (cup {2} in disc {1, 2}). The map then
has, around the inner structure, the value that only the outer one has. Needs NumPy alone: an exported bundle contains
a copy of this file.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def own_values(structures: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
    """The value that represents each structure in a map: the smallest that no structure within it has.

    None if no single map can hold all structures: two overlap without one lying in the other, or one has no value that
    the structures within it lack.
    """
    sets = [frozenset(values) for values in structures]
    if any(a & b and not (a < b or b < a) for i, a in enumerate(sets) for b in sets[:i]):
        return None
    own = [outer.difference(*(inner for inner in sets if inner < outer)) for outer in sets]
    return tuple(min(values) for values in own) if all(own) else None


def label_map(
    probabilities: NDArray[np.float64], masks: NDArray[np.bool_], structures: Sequence[Sequence[int]]
) -> NDArray[np.uint8]:
    """Masks (C, H, W) and the probabilities behind them -> label values (H, W), 0 outside of all structures.

    An inner structure is drawn over the outer one, also where the outer one was missed. Where masks of two structures
    that exclude each other overlap, the more probable one is drawn, at a tie the first.

    Raises:
        ValueError: `own_values` is None for these structures.
    """
    values = own_values(structures)
    if values is None:
        raise ValueError("these structures do not fit into one map")
    sets = [frozenset(of) for of in structures]
    label = np.zeros(masks.shape[1:], dtype=np.uint8)
    drawn = np.full(masks.shape[1:], -1)  # index of the structure that the label value represents
    for index in sorted(range(len(sets)), key=lambda k: -len(sets[k])):  # outer ones first
        claims = masks[index].copy()
        for other in range(len(sets)):
            if not sets[index] < sets[other]:
                claims &= ~((drawn == other) & (probabilities[other] >= probabilities[index]))
        label[claims], drawn[claims] = values[index], index
    return label
