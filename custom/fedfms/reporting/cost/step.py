"""FLOPs and memory of a training step, counted from shapes on torch's meta device: the same on every machine."""

import statistics
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fedfms.methods import ServerState
from fedfms.reporting.cost.traffic import planned_sites, shared_tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build_on_meta
from fedfms.training.prefix import PrefixCache

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of operators' outputs until they are freed: `now`, and at most (`peak`)."""

    def __init__(self, known: Sequence[torch.Tensor] = ()) -> None:
        """`known`: tensors that exist already, and are not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._known = {_identity(tensor) for tensor in known}
        self._references = list(known)  # so that no identity is reused

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count its outputs."""
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


def _identity(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class Live:
    """Bytes of a step.

    peak: maximum in forward and backward, including gradients, excluding `weights` and the optimizer's `state`.
    after_forward: live at the end of the forward pass. gradients: of the trained parameters.
    """

    peak: int
    after_forward: int
    weights: int
    gradients: int
    state: int


def live_bytes(study: Study, settings: SiteSettings, *, training: bool = True) -> Live:
    """Of a step at a site with these settings, in float32: torch has no autocast on the meta device.

    Args:
        training: false counts a prediction of the same number of slices.

    Raises:
        StudyError: the study's model or method is not valid.
    """
    built = build_on_meta(study, settings)
    model, batch = built.model, settings.micro_batch or study.train.batch_size
    images = torch.empty(min(batch, study.train.batch_size), 3, model.input_px, model.input_px, device="meta")
    optimizer = built.method.optimizer(built.parameters(), study.train)
    model.train(model.train_mode if training else False)
    with LiveBytes([*model.parameters(), *model.buffers(), images]) as live, torch.set_grad_enabled(training):
        logits = model(images)
        after_forward = live.now
        if training:
            logits.sum().backward()  # the loss itself needs little memory
    if training:
        optimizer.step()
    return Live(live.peak, after_forward, *_held_bytes(model, optimizer))


def _held_bytes(model: nn.Module, optimizer: Optimizer) -> tuple[int, int, int]:
    """Bytes of weights and buffers, of gradients, and of the optimizer's state."""
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    values = (value for of_parameter in optimizer.state.values() for value in of_parameter.values())
    return weights, gradients, sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def estimate(study: Study, settings: SiteSettings, *, training: bool = True) -> int:
    """Approximate bytes of a site's step: weights, optimizer, and the maximum of live bytes; see `live_bytes`.

    One slice is counted and multiplied by the number of slices, since a large network has 100,000 operators per slice.
    The estimate of a small network is up to a sixth too low on the plain attention path, and up to a half too high on
    the others.
    """
    slices = min(settings.micro_batch or study.train.batch_size, study.train.batch_size)
    one = replace(study, train=replace(study.train, batch_size=1))
    live = live_bytes(one, settings, training=training)
    gradients = min(live.gradients, live.peak)
    return live.weights + live.state + gradients + slices * (live.peak - gradients)


@dataclass(frozen=True)
class Work:
    """Of one training step. FLOPs count a multiply-add as two, and only products (matrices, convolutions): no sums,
    norms, activations, loss or optimizer.

    layers: the part of `forward` in linear and convolution layers, without attention's own products. trained_layers:
    the part of `layers` in trained layers. state_bytes: weights, gradients and the optimizer's state. cached: the part
    of `forward` that a site computes once per image (`fedfms.training.prefix`).
    """

    forward: int
    backward: int
    layers: int
    trained_layers: int
    state_bytes: int
    cached: int = 0

    @property
    def by_layers(self) -> int:
        """FLOPs as counters of layers give them: the backward pass is twice the forward pass of the trained layers."""
        return self.layers + 2 * self.trained_layers


def step_work(study: Study) -> Work:
    """A step of a site's first round at the study's batch size; a mean over sites if they receive different parts.

    Raises:
        StudyError: the study's model or method is not valid.
    """
    # On the plain attention path: the fast one computes attention twice, and skips padding.
    built = build_on_meta(study, SiteSettings(attention="plain"))
    server = ServerState(shared_tensors(built), 0, study.seed)
    parts = [frozenset(part) for part in built.method.dispatch(server, planned_sites(study)).values()]
    counted = {part: _in_round_0(built, part, study) for part in set(parts)}
    return Work(
        **{f.name: round(statistics.fmean(getattr(counted[part], f.name) for part in parts)) for f in fields(Work)}
    )


def _in_round_0(built: BuiltModel, received: Collection[str], study: Study) -> Work:
    built.train_only({*received, *built.partition.private})
    built.method.before_training(built.model, 0, received)
    try:
        return count(built, study)
    finally:
        built.method.after_training(built.model)


def count(built: BuiltModel, study: Study) -> Work:
    """The work of a step of a meta-device model with its current trained parameters."""
    model = built.model
    optimizer = built.method.optimizer(built.parameters(), study.train)
    images = torch.empty(study.train.batch_size, 3, model.input_px, model.input_px, device="meta")
    model.train(model.train_mode)
    with FlopCounterMode(display=False) as forward:
        logits = model(images)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()  # a loss adds no products, and has no value on this device
    optimizer.step()
    state = sum(_held_bytes(model, optimizer))
    model.zero_grad(set_to_none=True)
    model.eval()
    layers = _by_layer(model, forward)
    return Work(
        forward=forward.get_total_flops(),
        backward=backward.get_total_flops(),
        layers=sum(flops for _, flops in layers),
        trained_layers=sum(flops for trained, flops in layers if trained),
        state_bytes=state,
        cached=_cached(built, study, images),
    )


def _cached(built: BuiltModel, study: Study, images: torch.Tensor) -> int:
    if not (study.data.cache and study.data.few_views and PrefixCache.applies(built)):
        return 0
    with FlopCounterMode(display=False) as prefix, torch.no_grad():
        built.model.prefix(images)
    return int(prefix.get_total_flops())


def _by_layer(model: nn.Module, counter: FlopCounterMode) -> list[tuple[bool, int]]:
    """For each linear and convolution layer: whether it is trained, and its FLOPs."""
    counts, root = counter.get_flop_counts(), type(model).__name__
    return [
        (any(p.requires_grad for p in module.parameters()), sum(counts.get(f"{root}.{name}", {}).values()))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    ]
