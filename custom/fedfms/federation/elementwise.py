"""Element-wise reductions over a round's updates, block by block: memory does not grow with their size or number.

Updates may be memory-mapped (`fedfms.federation.memory_mapped`); each is read once, in float64.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from fedfms.methods import Tensors
from fedfms.methods.fedavg import cast_back

_ELEMENTS = 1 << 17  # per block, of all updates together: 1 MiB of float64


def blocks(parts: Sequence[Tensors], name: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks (parts, B) of a tensor of all parts, each with its slice of the flat tensor; one buffer serves all."""
    flat = [part[name].reshape(-1) for part in parts]
    width = max(1, _ELEMENTS // len(parts))
    work = torch.empty(len(parts), min(width, flat[0].numel()), dtype=torch.float64)
    for start in range(0, flat[0].numel(), width):
        place = slice(start, min(start + width, flat[0].numel()))
        block = work[:, : place.stop - place.start]
        for row, tensor in zip(block, flat, strict=True):
            row.copy_(tensor[place])
        yield place, block


def reduced(parts: Sequence[Tensors], reduce: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    """Each element by `reduce` of its values in all parts, (parts, B) -> (B,); in the tensors' own dtype."""
    out: Tensors = {}
    for name, first in parts[0].items():
        out[name] = torch.empty(first.shape, dtype=first.dtype)
        for place, block in blocks(parts, name):
            out[name].view(-1)[place] = cast_back(reduce(block), first.dtype)
    return out


def norm(tensors: Tensors, start: Tensors) -> float:
    """Euclidean length of tensors - start over all floating-point tensors; counters are not part of a move."""
    total = 0.0
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point:
            for _, (new, old) in blocks([tensors, start], name):
                total += float(new.sub_(old).square_().sum())
    return total**0.5


def distances(parts: Sequence[Tensors]) -> torch.Tensor:
    """Squared Euclidean distances (parts, parts), float64, over all floating-point tensors."""
    squared = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for name, first in parts[0].items():
        for _, block in blocks(parts, name) if first.dtype.is_floating_point else ():
            for index in range(len(parts) - 1):  # differences, not inner products: close updates keep their digits
                apart = (block[index + 1 :] - block[index]).square_().sum(dim=1)
                squared[index, index + 1 :] += apart
    return squared + squared.T
