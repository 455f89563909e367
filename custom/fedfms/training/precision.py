"""The forward pass of a model in the study's precision, with a cached prefix.

The prefix always runs in float32. So one cache serves every precision, and training gives the same numbers with and
without it (up to the last bits where convolutions of small images depend on the batch). CPUs without bfloat16 also
take 100 times as long for convolutions in it.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fedfms.errors import TrainingError
from fedfms.models import SegmentationModel
from fedfms.training.cpu_tuning import onednn_matmul, retain_freed_memory
from fedfms.training.prefix import PrefixCache

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Forward:
    """Computes a model's logits in a study's precision.

    Args:
        cache: of prefix outputs; None = no cache.
        cpu_tuning: apply `fedfms.training.cpu_tuning` if the model is on the CPU.

    Raises:
        TrainingError: the model's device does not support the precision.
    """

    def __init__(
        self, model: SegmentationModel, precision: str, cache: PrefixCache | None = None, *, cpu_tuning: bool
    ) -> None:
        self.device = next(model.parameters()).device
        if not available(precision, self.device):
            raise TrainingError(
                f"train.precision is {precision}, which device {self.device.type} does not support",
                do="train on another device, or set train.precision to float32",
            )
        self._model = model
        self._dtype = _DTYPES.get(precision)
        self._cache = cache
        self._cpu_tuning = cpu_tuning and self.device.type == "cpu"
        if self._cpu_tuning:
            retain_freed_memory()

    def matmul_context(self) -> AbstractContextManager[None]:
        """The context for a backward pass; `logits` enters it for the forward pass."""
        return onednn_matmul() if self._cpu_tuning else nullcontext()

    def logits(self, images: Tensor, keys: Sequence[str] | None = None, micro_batch: int = 0) -> Tensor:
        """Images (B, 3, H, W) in 0..1 -> float32 logits (B, ...).

        Args:
            keys: identify the images' contents in the cache; None = do not use the cache.
            micro_batch: images per forward pass; 0 = all.
        """
        size = micro_batch or len(images)
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        with self.matmul_context():
            logits = [self._part(images[part], keys and keys[part]) for part in parts]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _part(self, images: Tensor, keys: Sequence[str] | None) -> Tensor:
        images = images.to(self.device)
        if keys is not None and self._cache is not None:
            features = self._cache.features(images, keys)
        else:
            features = self._model.prefix(images)
        autocast: AbstractContextManager[Any] = nullcontext()
        if self._dtype is not None:
            autocast = torch.autocast(self.device.type, self._dtype)
        with autocast:
            return self._model.from_prefix(features).float()

    def store_frozen(self, trained: Collection[str]) -> None:
        """Store the frozen weights of linear layers in the lower precision, to which autocast would cast them anyway
        at every step; not those of the prefix, which runs in float32.
        """
        if self._dtype is None:
            return
        excluded = {*trained, *self._model.prefix_names()}
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Linear) and f"{name}.weight" not in excluded:
                module.weight.data = module.weight.data.to(self._dtype)


def available(precision: str, device: torch.device) -> bool:
    """Whether a device supports a precision: float16 needs CUDA, bfloat16 a CPU or a newer GPU."""
    if precision == "float32":
        return True
    if device.type == "cuda":
        return precision == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16" and device.type == "cpu"
