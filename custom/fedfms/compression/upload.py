"""From a site to its server: what training changed, and what earlier rounds lost to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from fedfms.compression.codecs import Arrays, Codec, compressed
from fedfms.errors import UpdateError

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Upload:
    """A site's message, the tensors that the server makes of it, and what the site keeps for its next one."""

    arrays: Arrays
    tensors: Tensors
    residual: Tensors = field(default_factory=dict)


def upload(packed: Tensors, received: Tensors, residual: Tensors, codec: Codec) -> Upload:
    """Code packed - received + residual, and keep what the code lost (error feedback).

    Args:
        packed: what the method sends; each of its names was received.
        residual: of earlier rounds, by name; names that are not sent now keep theirs.

    Raises:
        UpdateError: a value is not finite; it would stay in the residual for ever.
    """
    arrays, tensors, lost = {}, {}, dict(residual)
    for name, tensor in packed.items():
        if not compressed(name, tensor):
            arrays[name], tensors[name] = tensor.numpy(), tensor
            continue
        change = tensor - received[name]
        if name in residual:
            change += residual[name]
        if not torch.isfinite(change).all():
            raise UpdateError(f"the update of {name} has values that are not finite", do="lower train.lr")
        arrays[name] = codec.encode(change)
        decoded = codec.decode(arrays[name], tuple(tensor.shape))
        tensors[name], lost[name] = received[name] + decoded, change - decoded
    return Upload(arrays, tensors, lost)


def read_upload(arrays: Mapping[str, np.ndarray], received: Tensors, codec: Codec) -> Tensors:
    """The whole tensors of a site's message, of the layout of `received`, in which its names are: `Upload.tensors`."""
    return {
        name: received[name] + codec.decode(array, tuple(received[name].shape)) if compressed(name, received[name])
        else torch.from_numpy(array.copy())
        for name, array in arrays.items()
    }  # fmt: skip
