"""A short name for a dict of tensors, by which two machines see whether they hold the same bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

_SIZE = 16  # bytes


def digest(tensors: Mapping[str, torch.Tensor], known: dict[int, bytes] | None = None) -> str:
    """BLAKE2b of names, dtypes, shapes and bytes (CPU tensors), whatever the order of the names; hexadecimal.

    Args:
        known: digests of tensors by `id`, filled and used; where the same tensors stand in many dicts.
    """
    known = {} if known is None else known
    whole = hashlib.blake2b(digest_size=_SIZE)
    for name in sorted(tensors):
        tensor = tensors[name]
        if id(tensor) not in known:
            known[id(tensor)] = _of_one(tensor)
        whole.update(f"{len(name)}:{name}".encode() + known[id(tensor)])
    return whole.hexdigest()


def _of_one(tensor: torch.Tensor) -> bytes:
    one = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=_SIZE)
    one.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return one.digest()
