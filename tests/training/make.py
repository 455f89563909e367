"""What the tests of metrics and of scores work on."""

from __future__ import annotations

import torch

FULL, EMPTY = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)  # 8 pixels
YES, NO = 5.0, -5.0  # logits far from every threshold


def one_pixel(value: float, other: float) -> torch.Tensor:
    image = torch.full((1, 1, 2, 4), other)
    image[0, 0, 1, 2] = value
    return image


def random_batch(seed: int, images: int, structures: int, px: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks, some of them empty."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, structures, px, px, generator=rng)
    masks = (torch.rand(images, structures, px, px, generator=rng) > 0.6).float()
    empty = torch.rand(2, images, structures, generator=rng) < 0.3
    logits[empty[0]] = -5.0
    masks[empty[1]] = 0
    return logits, masks
