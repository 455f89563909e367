"""Inputs for the tests of metrics, and a small study with a batch for its model."""

from typing import Any

import torch

from fedfms.study import Study

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


def study_of(method: str = "fedmsa", backbone: str = "vit_tiny", **train: object) -> Study:
    model = {"backbone": backbone, "input_px": 32, "adapter_init": "reference"}
    options = {"method": method, "model": model, "train": {"batch_size": 5, "lr": 1e-3, **train}}
    return Study.from_dict({"name": "t", **options})


def batch_of(model: Any, slices: int = 5) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    masks = (torch.rand(slices, 1, model.mask_px, model.mask_px, generator=draw) > 0.6).float()
    masks[0] = 0
    return {
        "image": torch.rand(slices, 3, model.input_px, model.input_px, generator=draw),
        "label": masks,
        "key": [f"{index:064d}" for index in range(slices)],
        "view": [f"{index:064d}" for index in range(slices)],
        "case": [f"{index:02d}" for index in range(slices)],
    }
