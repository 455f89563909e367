"""The weighted sum that is compiled where the package is installed beside a C compiler, in as many threads as torch's.

`fedavg.weighted_by_torch` is what it must equal, bit for bit, and what does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

try:
    from fedfms.methods import _mean
except ImportError:  # no compiler, or no headers of Python, when the package was installed
    _mean = None  # type: ignore[assignment]

_PIECE = 1 << 18  # elements a call: long beside what a call takes, short enough to give every thread work
_TENTH = 0.1  # such that a product with it is rounded, where nothing fuses it with the sum


def _agrees() -> bool:
    """Whether this build rounds as this torch does: by fused multiply-adds or by none, to the last element."""
    one = torch.arange(1.0, 1004.0).sqrt()
    ours, total = torch.empty_like(one), torch.zeros_like(one, dtype=torch.float64)
    for part in (one, -one):
        total.add_(part.to(torch.float64), alpha=_TENTH)
    _mean.weighted(ours.numpy(), (one.numpy(), (-one).numpy()), np.full(2, _TENTH), 1.0)
    return torch.equal(ours, total.to(torch.float32))


BUILT = _mean is not None and _agrees()


def takes(name: str, parts: Sequence[Mapping[str, torch.Tensor]]) -> bool:
    """Whether the tensors of a name can be summed here: float32 in the processor's memory, of one shape, in order."""
    shape = parts[0][name].shape
    return BUILT and all(
        part[name].dtype == torch.float32
        and part[name].device.type == "cpu"
        and part[name].shape == shape
        and part[name].is_contiguous()
        and not part[name].is_neg()
        and part[name].data_ptr() % part[name].element_size() == 0
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

    def add(piece: Sequence[tuple[str, slice]]) -> None:
        for name, where in piece:
            first, *others = (part[name].numpy().reshape(-1)[where] for part in (out, *parts))
            _mean.weighted(first, tuple(others), factors, float(by))

    pieces = list(_pieces({name: tensor.numel() for name, tensor in out.items()}))
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for piece in pieces:
            add(piece)
        return out
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(add, piece) for piece in pieces]:
            done.result()
    return out


def _pieces(sizes: Mapping[str, int]) -> Iterator[list[tuple[str, slice]]]:
    """Of `_PIECE` elements or so each: parts of large tensors, several small ones."""
    piece: list[tuple[str, slice]] = []
    count = 0
    for name, size in sizes.items():
        for start in range(0, size, _PIECE):
            piece.append((name, slice(start, min(start + _PIECE, size))))
            count += min(_PIECE, size - start)
            if count >= _PIECE:
                yield piece
                piece, count = [], 0
    if piece:
        yield piece
