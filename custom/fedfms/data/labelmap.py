"""From one mask a structure to one map of label values, as the data contract has it.

A structure lies within another where its label values are some of the other's (cup {2} in disc {1, 2}): the map then
has the value that is the outer one's alone around the inner one's. NumPy alone: an exported bundle carries this file
as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def own_values(structures: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
    """For each structure, by its label values, the one that stands for it in a map: the smallest that no structure
    within it has. None where no map can hold them all: two overlap without one lying in the other, or one has no
    value of its own (a whole that is nothing but its parts).
    """
    sets = [frozenset(values) for values in structures]
    if any(a & b and not (a < b or b < a) for i, a in enumerate(sets) for b in sets[:i]):
        return None
    own = [outer.difference(*(inner for inner in sets if inner < outer)) for outer in sets]
    return tuple(min(values) for values in own) if all(own) else None


def label_map(
    probabilities: NDArray[np.float64], masks: NDArray[np.bool_], structures: Sequence[Sequence[int]]
) -> NDArray[np.uint8]:
    """Masks (C, H, W), and the probabilities that they were made of -> label values (H, W), 0 outside of all.

    An inner structure is drawn over the one that it lies in, and stays where the outer one was missed; where two that
    exclude each other are both seen, the more probable one is drawn, at a tie the first.

    Raises:
        ValueError: `own_values` has none for these structures.
    """
    values = own_values(structures)
    if values is None:
        raise ValueError("these structures do not fit into one map")
    sets = [frozenset(of) for of in structures]
    label = np.zeros(masks.shape[1:], dtype=np.uint8)
    drawn = np.full(masks.shape[1:], -1)  # index of the structure that the label value stands for
    for index in sorted(range(len(sets)), key=lambda k: -len(sets[k])):  # outer ones first
        claims = masks[index].copy()
        for other in range(len(sets)):
            if not sets[index] < sets[other]:
                claims &= ~((drawn == other) & (probabilities[other] >= probabilities[index]))
        label[claims], drawn[claims] = values[index], index
    return label
