"""What is alive in a training step, counted on torch's meta device: the same on every machine, nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build_on_meta


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


@dataclass(frozen=True)
class Live:
    """Bytes of a step: `peak`, the most that is alive in forward and backward beside `weights` and the optimizer's
    `state`, trained parameters' `gradients` among it; `kept`, of that, what is left when forward is done.
    """

    peak: int
    kept: int
    weights: int
    gradients: int
    state: int


def live_bytes(study: Study, settings: SiteSettings, *, training: bool = True) -> Live:
    """Of a step as a site with these settings works it off, in float32: torch has no autocast for this device.

    Args:
        training: false counts a prediction of as many slices.

    Raises:
        StudyError: the model or the method of the study cannot be.
    """
    built = build_on_meta(study, settings)
    model, batch = built.model, settings.micro_batch or study.train.batch_size
    images = torch.empty(min(batch, study.train.batch_size), 3, model.input_px, model.input_px, device="meta")
    own = [*model.parameters(), *model.buffers()]
    optimizer = built.method.optimizer(built.parameters(), study.train)
    model.train(model.train_mode if training else False)
    with LiveBytes([*own, images]) as live, torch.set_grad_enabled(training):
        logits = model(images)
        kept = live.now
        if training:
            logits.sum().backward()  # the loss itself is nothing beside it
    if training:
        optimizer.step()
    values = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return Live(live.peak, kept, *(sum(value.nbytes for value in each) for each in (own, gradients, values)))


def estimate(study: Study, settings: SiteSettings, *, training: bool = True) -> int:
    """About what a site's step takes in bytes: weights, optimizer, and what is alive at most; see `live_bytes`.

    One slice is counted and taken as often as the batch has slices: a large network's operators are 100,000 a slice.
    Small networks come out up to a sixth too low on the plain path, and up to a half too high on the others.
    """
    slices = min(settings.micro_batch or study.train.batch_size, study.train.batch_size)
    one = replace(study, train=replace(study.train, batch_size=1))
    live = live_bytes(one, settings, training=training)
    gradients = min(live.gradients, live.peak)
    return live.weights + live.state + gradients + slices * (live.peak - gradients)


def _identity(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
