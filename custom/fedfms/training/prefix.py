"""Outputs of a model's frozen prefix, computed once per image and kept on the site's own disk.

Only adapters and decoder train in FedMSA, so what comes before the first adapter depends on the image alone. In
TinyViT that is the whole convolutional stage, at the highest resolution. The files never leave the site; they hold
features of images and are as private as the images are (mode 0600).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedfms.files import write_atomic
from fedfms.training.build import BuiltModel

_log = logging.getLogger(__name__)


class PrefixCache:
    """Prefix outputs by image content, for one set of frozen weights and one input size."""

    def __init__(self, built: BuiltModel, folder: Path) -> None:
        self._model = built.model
        self._folder = folder / _fingerprint(built)
        self._writes = True  # until it has failed once: a full disk costs time, not the round

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
        kept = _read(path)
        if kept is not None:
            return kept
        with torch.no_grad():
            output = self._model.prefix(image[None])[0].cpu()
        if self._writes:
            self._keep(path, output)
        return output

    def _keep(self, path: Path, output: torch.Tensor) -> None:
        buffer = io.BytesIO()
        np.save(buffer, output.numpy(), allow_pickle=False)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue(), mode=0o600)
        except OSError as error:
            self._writes = False
            _log.warning("the cache cannot be written (%s): training goes on without what is not in it", error.strerror)


def _read(path: Path) -> torch.Tensor | None:
    """What is in the file; None where there is none, or a damaged one."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):  # of a file that is cut short, numpy raises the latter two
        return None


def _fingerprint(built: BuiltModel) -> str:
    """Hash of all that the prefix's output hangs on but the image: other weights, another path, another cache.

    The study's model section whole, though not all of it reaches the prefix: a feature computed twice costs seconds,
    one that is taken for another's is a wrong result that nobody sees.
    """
    path = "plain" if built.model.plain_attention else "fast"
    digest = hashlib.sha256(f"prefix-3:{path}:{json.dumps(dataclasses.asdict(built.spec), sort_keys=True)}".encode())
    tensors = built.model.state_dict()
    for name in sorted(built.model.prefix_names()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name].detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
