"""What a training step computes, counted without computing it: shapes on torch's meta device."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedfms.methods import ServerState
from fedfms.reporting.cost.traffic import planned_sites, shared_tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build_on_meta

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Work:
    """Of one training step. FLOPs are two a multiply-add, of products (matrices, convolutions) alone: sums, norms,
    activations, the loss and the optimizer count as nothing.

    `layers`: of `forward`, what linear and convolution layers do, without attention's own products; `trained_layers`:
    of these, the layers that are trained. `state_bytes`: weights, gradients and the optimizer's state.
    """

    forward: int
    backward: int
    layers: int
    trained_layers: int
    state_bytes: int

    @property
    def by_layers(self) -> int:
        """FLOPs as counters that look at layers have them: backward is twice the forward of what is trained."""
        return self.layers + 2 * self.trained_layers


def step_work(study: Study) -> Work:
    """A step of a site's first round at the study's batch size: the mean over sites where they get different parts.

    Raises:
        StudyError: the model or the method of the study cannot be.
    """
    # By the plain path, whose work is the network's: the fast one works attention out twice, and no padding.
    built = build_on_meta(study, SiteSettings(attention="plain"))
    parts = [frozenset(part) for part in _dispatched(built, study)]
    counted = {part: _in_round_0(built, part, study) for part in set(parts)}
    return Work(
        **{f.name: round(statistics.fmean(getattr(counted[part], f.name) for part in parts)) for f in fields(Work)}
    )


def _dispatched(built: BuiltModel, study: Study) -> Iterator[Collection[str]]:
    """Names of what each site is sent in the first round."""
    yield from built.method.dispatch(ServerState(shared_tensors(built), 0, study.seed), planned_sites(study)).values()


def _in_round_0(built: BuiltModel, received: Collection[str], study: Study) -> Work:
    built.train_only({*received, *built.partition.private})
    built.method.before_training(built.model, 0, received)
    try:
        return count(built, study)
    finally:
        built.method.after_training(built.model)


def count(built: BuiltModel, study: Study) -> Work:
    """The work of a step of an outlined model, as its parameters are set to train."""
    model = built.model
    optimizer = built.method.optimizer(built.parameters(), study.train)
    images = torch.empty(study.train.batch_size, 3, model.input_px, model.input_px, device="meta")
    model.train(model.train_mode)
    with FlopCounterMode(display=False) as forward:
        logits = model(images)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()  # what a loss adds are no products, and on this device it would have no value
    optimizer.step()
    state = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    state += sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    for values in optimizer.state.values():
        state += sum(value.nbytes for value in values.values() if isinstance(value, torch.Tensor))
    model.zero_grad(set_to_none=True)
    model.eval()
    layers = _by_layer(model, forward)
    return Work(
        forward=forward.get_total_flops(),
        backward=backward.get_total_flops(),
        layers=sum(flops for _, flops in layers),
        trained_layers=sum(flops for trained, flops in layers if trained),
        state_bytes=state,
    )


def _by_layer(model: nn.Module, counter: FlopCounterMode) -> list[tuple[bool, int]]:
    """Of each linear and convolution layer: whether it is trained, and its FLOPs."""
    counts, root = counter.get_flop_counts(), type(model).__name__
    return [
        (any(p.requires_grad for p in module.parameters()), sum(counts.get(f"{root}.{name}", {}).values()))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    ]
