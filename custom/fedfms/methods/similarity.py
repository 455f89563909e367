"""Pairwise similarity d(S_i, S_j) of the sites' tensors (FedSCA's Eq. 7), and its scaling."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch

from fedfms.methods.base import Tensors

Kind = Literal["l2", "l1", "cosine", "inner"]
Scale = Literal["mean", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCALES: tuple[Scale, ...] = get_args(Scale)
_CHUNK = 4096  # elements per site and chunk: a chunk of 100 sites fits the CPU's cache


def pairwise_similarities(parts: Sequence[Tensors], kind: Kind) -> torch.Tensor:
    """d(S_i, S_j) of N dicts of tensors with the same names, each taken as one vector: float64 (N, N), symmetric.

    `l2` and `l1` are the negative distance; `cosine` is 0 for a vector of norm 0; `inner` is the inner product. The
    diagonal is d(S_i, S_i) by the same formula: 0 for distances (the maximum), 1 for the cosine, ||S_i||^2 for the
    inner product.
    """
    if kind in ("l1", "l2"):
        return -_distances(parts, 1.0 if kind == "l1" else 2.0)
    gram = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for chunk in _chunks(parts):
        gram += chunk @ chunk.T
    gram = (gram + gram.T) / 2
    if kind == "inner":
        return gram
    norms = gram.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, torch.inf)
    return gram / norms / norms[:, None]


def scale_by_mean(similarities: torch.Tensor) -> torch.Tensor:
    """(N, N) divided by the mean absolute value over pairs i != j, so that alpha means the same for any model size.

    Returned unchanged if that mean is 0 (all sites are equal), or for a single site.
    """
    count = len(similarities)
    between = similarities[~torch.eye(count, dtype=torch.bool)].abs()
    mean = between.mean() if count > 1 else between.sum()
    return similarities / mean if mean > 0 else similarities


def _distances(parts: Sequence[Tensors], power: float) -> torch.Tensor:
    """(N, N) distances, from differences: a Gram matrix would lose small distances to rounding."""
    count = len(parts)
    total = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    for chunk in _chunks(parts):
        total += torch.pdist(chunk, power) ** power
    rows, columns = torch.triu_indices(count, count, offset=1)
    out = torch.zeros(count, count, dtype=torch.float64)
    out[rows, columns] = out[columns, rows] = total ** (1 / power)
    return out


def _chunks(parts: Sequence[Tensors]) -> Iterator[torch.Tensor]:
    """The flattened tensors of all sites in chunks: float64 (N, up to `_CHUNK`)."""
    for name in parts[0]:
        flat = [part[name].reshape(-1) for part in parts]
        for start in range(0, flat[0].numel(), _CHUNK):
            yield torch.stack([vector[start : start + _CHUNK] for vector in flat]).to(torch.float64)
