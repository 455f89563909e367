"""The weighted sum that is compiled where the package is installed beside a C compiler, in as many threads as torch's.

`fedavg.weighted_by_torch` is what it must equal, bit for bit, and what does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

try:
    from fedfms.methods import _mean
except ImportError:  # no compiler, or no headers of Python, when the package was installed
    BUILT = False
else:
    BUILT = True

_PIECE = 1 << 18  # elements a call: long beside what a call takes, short enough to give every thread work


def takes(name: str, parts: Sequence[Mapping[str, torch.Tensor]]) -> bool:
    """Whether the tensors of a name can be summed here: float32 in the processor's memory, of one shape, in order."""
    shape = parts[0][name].shape
    return BUILT and all(
        part[name].dtype == torch.float32
        and part[name].device.type == "cpu"
        and part[name].shape == shape
        and part[name].is_contiguous()
        for part in parts
    )


def weighted(
    names: Sequence[str], parts: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float], by: float
) -> dict[str, torch.Tensor]:
    """sum_i w_i S_i / by of the tensors of `names`, all of which it `takes`; each is read once, and nothing is kept
    beside the result.
    """
    factors = np.array(weights, dtype=np.float64)
    out = {name: torch.empty_like(parts[0][name]) for name in names}

    def add(piece: tuple[str, int]) -> None:
        name, start = piece
        cut = [part[name].numpy().reshape(-1)[start : start + _PIECE] for part in (out, *parts)]
        _mean.weighted(cut[0], tuple(cut[1:]), factors, float(by))

    pieces = [(name, start) for name in names for start in range(0, out[name].numel(), _PIECE)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done in [pool.submit(add, piece) for piece in pieces]:
            done.result()
    return out
