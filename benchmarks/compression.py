"""The codecs of an update: bytes, seconds to encode and decode, rounding error."""

import statistics
import time
from typing import Any

import torch

from benchmarks.step import make_study
from fedfms.compression import CODECS, layout, nbytes
from fedfms.reporting.cost.traffic import shared_tensors
from fedfms.training.build import build_on_meta


def measure(method: str, backbone: str, repeats: int) -> list[dict[str, Any]]:
    """One row per codec: `mb` of 1e6 bytes, `share` of float32, `error` of one message as a relative norm.

    Error feedback corrects the rounding error in later rounds; the row does not include that.
    """
    like = shared_tensors(build_on_meta(make_study(method, backbone, 1024, 1)))
    stream = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(tensor.shape, generator=stream) * 1e-3 for name, tensor in like.items()}
    whole = nbytes(layout(tensors, None))
    common = {"method": method, "backbone": backbone}
    rows = [common | {"compression": "none", "mb": round(whole / 1e6, 2), "share": 1.0}]
    for codec in CODECS.values():
        encodes, decodes = [], []
        for _ in range(repeats):
            started = time.perf_counter()
            arrays = {name: codec.encode(tensor) for name, tensor in tensors.items()}
            encodes.append(time.perf_counter() - started)
            started = time.perf_counter()
            back = {name: codec.decode(array, tuple(tensors[name].shape)) for name, array in arrays.items()}
            decodes.append(time.perf_counter() - started)
        sent = sum(array.nbytes for array in arrays.values())
        lost = sum(float((back[name] - tensor).square().sum()) for name, tensor in tensors.items())
        rows.append(
            common
            | {"compression": codec.name, "mb": round(sent / 1e6, 2), "share": round(sent / whole, 3)}
            | {"encode_s": round(statistics.median(encodes), 4), "decode_s": round(statistics.median(decodes), 4)}
            | {"error": round((lost / sum(float(t.square().sum()) for t in tensors.values())) ** 0.5, 5)}
        )
    return rows
