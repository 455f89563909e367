"""From a site to the server: what training changed, plus the error-feedback residual of earlier rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from fedfms.compression.codecs import Arrays, Codec, Tensors, compressed
from fedfms.errors import UpdateError


class Payload(NamedTuple):
    """Arrays that leave a site. `base`: digest of the tensors that differences refer to; None: whole tensors."""

    arrays: Arrays
    base: str | None = None


@dataclass(frozen=True)
class Upload:
    """A site's arrays, the tensors that the server decodes from them, and the new residual."""

    arrays: Arrays
    tensors: Tensors
    residual: Tensors = field(default_factory=dict)


def upload(outgoing: Tensors, received: Tensors, residual: Tensors, codec: Codec) -> Upload:
    """Encode outgoing - received + residual; what rounding loses is the new residual (error feedback).

    Args:
        outgoing: what the method sends; each of its names was received.
        residual: of earlier rounds, by name; names that are not sent now keep theirs.

    Raises:
        UpdateError: a value is not finite; it would stay in the residual for ever.
    """
    arrays, tensors, lost = {}, {}, dict(residual)
    for name, tensor in outgoing.items():
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
    """Decode a site's valid arrays: `Upload.tensors`. `received` has each of their names."""
    return {
        name: received[name] + codec.decode(array, tuple(received[name].shape)) if compressed(name, received[name])
        else torch.from_numpy(array.copy())
        for name, array in arrays.items()
    }  # fmt: skip
