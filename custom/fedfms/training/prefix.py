"""Cached prefix: the frozen part of a model before the first trained layer runs once per image.

FedMSA trains adapters and decoder only, so the output of what precedes the first adapter depends on the image alone.
In TinyViT that is the whole convolutional stage, at the highest resolution, and with `model.adapter_blocks` also the
first transformer blocks, or the whole encoder. The files stay on the site's disk; they hold features of images and are
as private as the images (mode 0600). Their total size is limited.
"""

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
from fedfms.study import DataSpec
from fedfms.training.build import BuiltModel

_log = logging.getLogger(__name__)


class PrefixCache:
    """Prefix outputs by image content, for one set of frozen weights and one input size."""

    def __init__(self, built: BuiltModel, folder: Path, *, dtype: str = "float32", max_mb: int = 0) -> None:
        """Args:
        folder: holds the caches of this site's models.
        dtype: of the stored features. With bfloat16, features are rounded also when they are computed, so that
            training gives the same numbers with and without a cached file.
        max_mb: limit of the files below `folder`; 0: none.
        """
        self._model = built.model
        self._root, self._folder = folder, folder / _fingerprint(built, dtype)
        self._dtype = getattr(torch, dtype)
        self._writable = True  # False after the first failure: a full disk costs time, not the round
        self._max_bytes = max_mb * 1_000_000 or None
        self._bytes: int | None = None  # below `folder`; counted at the first write

    @staticmethod
    def applies(built: BuiltModel) -> bool:
        """Whether the model's prefix is costly and entirely frozen."""
        return built.model.prefix_is_costly and not (built.model.prefix_names() & built.partition.trained)

    @classmethod
    def of(cls, built: BuiltModel, spec: DataSpec, folder: Path, max_mb: int) -> "PrefixCache | None":
        """The cache of a study's model; None if the study caches nothing, or the prefix is cheap or trained."""
        return cls(built, folder, dtype=spec.cache_dtype, max_mb=max_mb) if spec.cache and cls.applies(built) else None

    def features(self, images: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        """Prefix outputs (B, ...) of images (B, 3, H, W), whose contents the keys identify.

        Each image is computed alone, so that its output does not depend on the rest of the batch.
        """
        rows = [self._feature(image, key) for image, key in zip(images, keys, strict=True)]
        return torch.stack(rows).to(images.device).float()

    def _feature(self, image: torch.Tensor, key: str) -> torch.Tensor:
        path = self._folder / f"{key}.npy"
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False)).view(self._dtype)
        except (OSError, ValueError, EOFError):  # missing, or truncated (the latter two)
            pass
        with torch.no_grad():
            output = self._model.prefix(image[None])[0].to(self._dtype).contiguous().cpu()
        if self._writable:
            self._write(path, output)
        return output

    def _write(self, path: Path, output: torch.Tensor) -> None:
        buffer = io.BytesIO()
        # numpy has no bfloat16
        np.save(buffer, (output.view(torch.int16) if self._dtype == torch.bfloat16 else output).numpy())
        if not self._has_room(buffer.tell()):
            self._writable = False
            _log.warning("the prefix cache has reached its limit (cache_mb); new images are not cached")
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue(), mode=0o600)
        except OSError as error:
            self._writable = False
            _log.warning("cannot write the prefix cache (%s); new images are not cached", error.strerror)

    def _has_room(self, nbytes: int) -> bool:
        if self._max_bytes is None:
            return True
        if self._bytes is None:
            self._bytes = sum(path.stat().st_size for path in self._root.rglob("*.npy"))
        self._bytes += nbytes
        return self._bytes <= self._max_bytes


def _fingerprint(built: BuiltModel, dtype: str) -> str:
    """Hash of everything but the image that determines the prefix's output.

    It covers the study's whole model section, though not all of it reaches the prefix: an unnecessary recomputation
    costs seconds, but a wrong match would silently give wrong results.
    """
    path = "plain" if built.model.plain_attention else "fast"
    digest = hashlib.sha256(
        f"prefix-4:{dtype}:{path}:{json.dumps(dataclasses.asdict(built.spec), sort_keys=True)}".encode()
    )
    tensors = built.model.state_dict()
    for name in sorted(built.model.prefix_names()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name].detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
