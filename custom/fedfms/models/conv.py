"""Base class of convolutional networks: all parameters train from scratch; masks have their own size."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from fedfms.models.base import SegmentationModel


class ConvModel(SegmentationModel):
    """A network without a frozen prefix and without adapters; a subclass builds `net`."""

    train_mode = True
    head_names: ClassVar[tuple[str, ...]]  # prefixes of parameter names in `net`
    decoder_names: ClassVar[tuple[str, ...]]

    net: nn.Module  # features (B, 3, S, S) -> logits (..., S, S)

    def prefix(self, images: Tensor) -> Tensor:
        """The images, unchanged: all parameters train."""
        self.check_size(images)
        return images

    def from_prefix(self, features: Tensor) -> Tensor:
        """`prefix`'s images (B, 3, S, S) -> logits (B, C, mask_px, mask_px); (B, K, C, ...) with deep supervision."""
        return to_mask_size(self.net(features), self.mask_px)

    def role(self, name: str) -> str:
        """Encoder: the contracting path; decoder: the expanding path; head: the layers that give logits."""
        name = name.removeprefix("net.")
        if name.startswith(self.head_names):
            return "head"
        return "decoder" if name.startswith(self.decoder_names) else "encoder"

    def moving_buffers(self) -> tuple[str, ...]:
        """All of them: running mean, variance and count of every batch norm."""
        return tuple(name for name, _ in self.named_buffers())


def mask_size(input_px: int, max_mask_px: int) -> int:
    """The largest divisor of `input_px` up to `max_mask_px`; for 256: 1024 -> 256, 128 -> 128, 320 -> 160."""
    return next(input_px // k for k in range(1, input_px + 1) if input_px % k == 0 and input_px // k <= max_mask_px)


def to_mask_size(logits: Tensor, mask_px: int) -> Tensor:
    """Logits (..., S, S) -> (..., mask_px, mask_px), by average pooling."""
    cell = logits.shape[-1] // mask_px
    if cell == 1:
        return logits
    pooled = functional.avg_pool2d(logits.flatten(0, -4), cell)
    return pooled.view(*logits.shape[:-2], mask_px, mask_px)
