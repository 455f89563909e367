"""Outputs of a model's frozen prefix, computed once per image and kept on the site's own disk.

Only adapters and decoder train in FedMSA, so what comes before the first adapter depends on the image alone. In
TinyViT that is the whole convolutional stage: most of a step's cost. The files never leave the site; they hold
features of images and are as private as the images are (mode 0600).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedfms.files import write_atomic
from fedfms.training.build import BuiltModel


class PrefixCache:
    """Prefix outputs by image content, for one set of frozen weights and one input size."""

    def __init__(self, built: BuiltModel, folder: Path) -> None:
        self._model = built.model
        self._folder = folder / _fingerprint(built)

    @staticmethod
    def applies(built: BuiltModel) -> bool:
        """Whether the model's prefix is worth keeping, and nothing in it is trained."""
        return built.model.prefix_is_costly and not (built.model.prefix_names() & built.partition.trained)

    def features(self, images: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        """Prefix outputs (B, ...) of images (B, 3, H, W), whose contents the keys identify.

        Each is computed on its own, so that it does not depend on who shares its batch.
        """
        rows = [self._one(image, key) for image, key in zip(images, keys, strict=True)]
        return torch.stack(rows).to(images.device)

    def _one(self, image: torch.Tensor, key: str) -> torch.Tensor:
        path = self._folder / f"{key}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        with torch.no_grad():
            output = self._model.prefix(image[None])[0].cpu()
        self._folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, output.numpy(), allow_pickle=False)
        write_atomic(path, buffer.getvalue(), mode=0o600)
        return output

    def size_mb(self) -> float:
        """What the cache holds on disk, in MB."""
        if not self._folder.is_dir():
            return 0.0
        return sum(entry.stat().st_size for entry in os.scandir(self._folder)) / 1e6


def _fingerprint(built: BuiltModel) -> str:
    """Hash of the prefix's weights and of the input size: another of either is another cache."""
    digest = hashlib.sha256(f"prefix-1:{built.model.backbone}:{built.model.input_px}".encode())
    tensors = built.model.state_dict()
    for name in sorted(built.model.prefix_names()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name].detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
