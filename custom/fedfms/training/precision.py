"""The forward pass in a lower precision, where the study wants it and the device can.

The prefix stays in float32: what is kept of it serves every precision, a model trains to the same numbers with and
without it kept (but for last bits where convolutions of small images depend on the batch), and processors without
bfloat16 take 100 times as long for its convolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fedfms.errors import TrainingError
from fedfms.models import SegmentationModel
from fedfms.training.cpu_tuning import float32_products, keep_freed_memory
from fedfms.training.prefix import PrefixCache

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Forward:
    """A model's logits in a study's precision; `available` tells whether the device can.

    Args:
        tuned: use the processor as `fedfms.training.cpu_tuning` has it, where it is the device.

    Raises:
        TrainingError: it cannot.
    """

    def __init__(
        self, model: SegmentationModel, precision: str, cache: PrefixCache | None = None, *, tuned: bool
    ) -> None:
        self.device = next(model.parameters()).device
        if not available(precision, self.device):
            raise TrainingError(
                f"train.precision is {precision}, which device {self.device.type} cannot compute in",
                do="train on another device, or set train.precision to float32",
            )
        self._model = model
        self._dtype = _HALF.get(precision)
        self._cache = cache
        self._tuned = tuned and self.device.type == "cpu"
        if self._tuned:
            keep_freed_memory()

    def products(self) -> AbstractContextManager[None]:
        """What a backward pass runs in; `logits` enters it by itself."""
        return float32_products() if self._tuned else nullcontext()

    def logits(self, images: Tensor, keys: Sequence[str] | None = None, micro_batch: int = 0) -> Tensor:
        """Images (B, 3, H, W) in 0..1 -> float32 logits (B, ...), `micro_batch` images at a time (0 = all).

        Args:
            keys: what tells the images' contents apart, where the prefix's outputs may be kept.
        """
        size = micro_batch or len(images)
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        with self.products():
            found = [self._some(images[part], keys and keys[part]) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _some(self, images: Tensor, keys: Sequence[str] | None) -> Tensor:
        images = images.to(self.device)
        if keys is not None and self._cache is not None:
            features = self._cache.features(images, keys)
        else:
            features = self._model.prefix(images)
        with self._autocast():
            return self._model.from_prefix(features).float()

    def store_frozen(self, trained: Collection[str]) -> None:
        """Keep the weights of linear layers but for those of `trained` as autocast would cast them at every step."""
        if self._dtype is None:
            return
        for place, module in self._model.named_modules():
            if isinstance(module, nn.Linear) and f"{place}.weight" not in trained:
                module.weight.data = module.weight.data.to(self._dtype)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, self._dtype)


def available(precision: str, device: torch.device) -> bool:
    """Whether a device can compute in this precision: float16 on CUDA alone, bfloat16 on processors and newer cards."""
    if precision == "float32":
        return True
    if device.type == "cuda":
        return precision == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16" and device.type == "cpu"
