"""Adapters in the blocks of a frozen image encoder (MSA: Wu et al., 2023; FedFMS, section 3.1)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fedfms.study import ModelSpec

MLP_ADAPTER_SCALE = 0.5
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class Adapter(nn.Module):
    """x -> up(act(down(x))): (..., dim) -> (..., dim), through max(1, int(ratio x dim)) channels.

    `init="zero"` initialises the up-projection with zeros, so round 0 is exactly the pre-trained function;
    `"reference"` is torch's default, as in the paper's code.
    """

    def __init__(self, dim: int, *, ratio: float, act: str, init: str) -> None:
        super().__init__()
        width = max(1, int(ratio * dim))
        self.down = nn.Linear(dim, width)
        self.act = _ACTIVATIONS[act]()
        self.up = nn.Linear(width, dim)
        if init == "zero":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim), no skip connection."""
        out: Tensor = self.up(self.act(self.down(x)))
        return out


class BlockAdapters(nn.Module):
    """The two adapters of one block, in the order of A_1..A_K: after attention, then parallel to the MLP."""

    def __init__(self, dim: int, spec: ModelSpec) -> None:
        super().__init__()
        make = partial(Adapter, dim, ratio=spec.adapter_ratio, act=spec.adapter_act, init=spec.adapter_init)
        self.after_attention, self.beside_mlp = make(), make()

    def adapt_attention(self, attended: Tensor) -> Tensor:
        """Attention's output (B, H, W, dim), before the block's residual -> the same shape, with a skip connection.

        Adapters work token by token, so the result does not depend on the windows' padding: remove it first.
        """
        out: Tensor = attended + self.after_attention(attended)
        return out

    def add_beside_mlp(self, x: Tensor, normed: Tensor) -> Tensor:
        """x + 0.5 x adapter(normed), `normed` the MLP's own normalised input; all (..., dim)."""
        return torch.add(x, self.beside_mlp(normed), alpha=MLP_ADAPTER_SCALE)


def build_adapters(block_dims: Sequence[int], spec: ModelSpec) -> nn.ModuleList:
    """Two adapters for each of these blocks, from input to output; `block_dims` are the blocks' channels."""
    return nn.ModuleList(BlockAdapters(dim, spec) for dim in block_dims)
