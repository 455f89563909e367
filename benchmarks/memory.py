"""Live bytes of a training step, counted on torch's meta device: the same on every machine, and nothing is computed.

In float32: autocast passes meta tensors by. What a lower precision saves, `step` measures.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step import ORACLE, PATHS, study_of
from fedfms.study import Study
from fedfms.training.build import outline


class LiveBytes(TorchDispatchMode):
    """Bytes of what operators make while it is on, until nobody holds it any more: now, and the most there were."""

    def __init__(self, known: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {_identity(tensor) for tensor in known}
        self._held = list(known)  # so that no identity is given twice

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and _identity(leaf) not in self._known:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


def measure(method: str, backbone: str, size_px: int, batch: int, paths: Sequence[str]) -> list[dict[str, Any]]:
    """A row a path, MiB: all that is alive at most in forward and backward, beside the weights; what is left after
    forward; `share` of the oracle's peak, or of the first row's.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        peak, kept = _count(study_of(method, backbone, size_px, batch), path)
        settings = PATHS[path]
        row = {"method": method, "backbone": backbone, "size_px": size_px, "batch": batch}
        row |= {"path": "plain" if settings.attention == "plain" else "fast"}
        row |= {"checkpointing": settings.checkpointing, "dtype": "float32"}
        rows.append(row | {"live_mb": round(peak / 2**20, 1), "kept_mb": round(kept / 2**20, 1)})
    oracle = rows[paths.index(ORACLE[0]) if ORACLE[0] in paths else 0]["live_mb"]
    return [row | {"share": round(row["live_mb"] / oracle, 3)} for row in rows]


def _count(study: Study, path: str) -> tuple[int, int]:
    """(peak, left after forward), bytes beside those of the model."""
    built = outline(study, PATHS[path])
    model = built.model
    images = torch.empty(study.train.batch_size, 3, model.input_px, model.input_px, device="meta")
    model.train(model.train_mode)
    with LiveBytes([*model.parameters(), *model.buffers(), images]) as live:
        logits = model(images)
        kept = live.now
        logits.sum().backward()  # the loss itself is nothing beside it
    return live.peak, kept


def _identity(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
