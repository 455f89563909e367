"""Digests of tensors, by which server and site check that they hold the same bits."""

import hashlib
from collections.abc import Mapping

import torch

_SIZE = 16  # bytes


def digest(tensors: Mapping[str, torch.Tensor], cache: dict[int, bytes] | None = None) -> str:
    """BLAKE2b (hexadecimal) of names, dtypes, shapes and bytes of CPU tensors, in the order of the names.

    Args:
        cache: digests by `id` of a tensor; filled and used where the same tensors stand in many dicts.
    """
    cache = {} if cache is None else cache
    whole = hashlib.blake2b(digest_size=_SIZE)
    for name in sorted(tensors):
        tensor = tensors[name]
        if id(tensor) not in cache:
            cache[id(tensor)] = _of_one(tensor)
        whole.update(f"{len(name)}:{name}".encode() + cache[id(tensor)])
    return whole.hexdigest()


def _of_one(tensor: torch.Tensor) -> bytes:
    one = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=_SIZE)
    one.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return one.digest()
