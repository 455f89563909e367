"""What convolutional networks have in common: everything trains, from scratch; masks have a size of their own."""

from __future__ import annotations

import abc

from torch import Tensor, nn
from torch.nn import functional

from fedfms.models.base import SegmentationModel


class ConvModel(SegmentationModel):
    """A network without anything frozen before it, and without adapters; a subclass makes `net`."""

    train_mode = True

    net: nn.Module  # features (B, 3, S, S) -> logits (..., S, S)

    def from_prefix(self, features: Tensor) -> Tensor:
        """`prefix`'s images (B, 3, S, S) -> logits (B, C, mask_px, mask_px), or (B, K, C, ...) as `net` gives them."""
        return to_mask_size(self.net(features), self.mask_px)

    def prefix_names(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def roles(self) -> dict[str, str]:
        """The way down is the encoder, the way up the decoder, what gives logits the head."""
        return {name: self._role(name) for name, _ in self.named_parameters()}

    @staticmethod
    @abc.abstractmethod
    def _role(name: str) -> str:
        """The role of the parameter of this name."""

    def adapters_in_order(self) -> list[tuple[str, ...]]:
        """None."""
        return []


def mask_size(input_px: int, max_mask_px: int) -> int:
    """The largest whole part of `input_px` that is at most `max_mask_px`: 1024 -> 256, 128 -> 128, 320 -> 160."""
    return next(input_px // k for k in range(1, input_px + 1) if input_px % k == 0 and input_px // k <= max_mask_px)


def to_mask_size(logits: Tensor, mask_px: int) -> Tensor:
    """Logits (..., S, S) -> (..., mask_px, mask_px), each the mean over its cell."""
    cell = logits.shape[-1] // mask_px
    if cell == 1:
        return logits
    pooled = functional.avg_pool2d(logits.flatten(0, -4), cell)
    return pooled.view(*logits.shape[:-2], mask_px, mask_px)
