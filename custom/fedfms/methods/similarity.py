"""How alike the tensors of several sites are: d(S_i, S_j) of FedSCA's Eq. 7 for all pairs, and its scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fedfms.methods.base import Tensors

KINDS = ("l2", "l1", "cosine", "inner")
SCALES = ("mean", "none")
_CHUNK = 4096  # elements of each site at a time: of 100 sites, what stays near the processor


def pairwise(parts: Sequence[Tensors], kind: str) -> torch.Tensor:
    """d(S_i, S_j) of N dicts of tensors with the same names, each taken as one vector: float64 (N, N), symmetric.

    `l2` and `l1` are minus the distance, `cosine` is 0 beside a vector of norm 0, `inner` is the inner product. The
    diagonal is d of a site with itself, by the same formula: 0 for a distance (no pair is more alike), 1 for the
    cosine, ||S_i||^2 for the inner product.
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


def scaled(similarities: torch.Tensor) -> torch.Tensor:
    """(N, N) divided by the mean absolute value over pairs i != j, so that alpha means the same for any model size.

    Where that mean is 0 nothing is divided: sites that are equal stay equally alike. So it is for a single site.
    """
    count = len(similarities)
    between = similarities[~torch.eye(count, dtype=torch.bool)].abs()
    mean = between.mean() if count > 1 else between.sum()
    return similarities / mean if mean > 0 else similarities


def _distances(parts: Sequence[Tensors], power: float) -> torch.Tensor:
    """(N, N) distances. From differences, not from a Gram matrix: sites that have moved little lie close together."""
    count = len(parts)
    total = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    for chunk in _chunks(parts):
        total += torch.pdist(chunk, power) ** power
    rows, columns = torch.triu_indices(count, count, offset=1)
    out = torch.zeros(count, count, dtype=torch.float64)
    out[rows, columns] = out[columns, rows] = total ** (1 / power)
    return out


def _chunks(parts: Sequence[Tensors]) -> Iterator[torch.Tensor]:
    """The flattened tensors of all sites side by side, a piece at a time: float64 (N, up to `_CHUNK`)."""
    for name in parts[0]:
        flat = [part[name].reshape(-1) for part in parts]
        for start in range(0, flat[0].numel(), _CHUNK):
            yield torch.stack([vector[start : start + _CHUNK] for vector in flat]).to(torch.float64)
