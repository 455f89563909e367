"""A study's optimizer, and optimizers made of others: for different parameters, and with loss scaling for float16."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from fedfms.study import TrainSpec

LR_SCALE = "lr_scale"  # key of a parameter group: factor of its learning rate
_KINDS: Mapping[str, Callable[..., Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def make_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], spec: TrainSpec, blocks_above: Mapping[str, int]
) -> Optimizer:
    """The study's optimizer: one group of parameters, or with `encoder_lr_decay` one for each of the learning rates.

    Args:
        blocks_above: see `fedfms.models.base.SegmentationModel.blocks_above`.
    """
    by_scale: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_scale.setdefault(spec.encoder_lr_decay ** blocks_above.get(name, 0), []).append(parameter)
    groups = [{"params": group, LR_SCALE: scale} for scale, group in by_scale.items()]
    betas = (spec.beta1, spec.beta2)
    return _KINDS[spec.optimizer](groups, lr=spec.lr, betas=betas, weight_decay=spec.weight_decay)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of each group of parameters, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(LR_SCALE, 1.0)


class CombinedOptimizer(Optimizer):
    """Optimizers of disjoint parameters that step together; `param_groups` is the concatenation of theirs.

    Raises:
        ValueError: two of them have a parameter in common.
    """

    def __init__(self, *parts: Optimizer) -> None:
        # The base class rejects a repeated parameter. Its own groups are then replaced by those of the parts.
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._collect_groups()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step each optimizer, in order."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """{"parts": [state of each, in order]}: tensors, numbers, lists and dicts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the same optimizers.

        Raises:
            ValueError: the state belongs to other optimizers.
        """
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._collect_groups()  # torch has replaced the groups

    def _collect_groups(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]


class ScaledOptimizer(CombinedOptimizer):
    """An optimizer of gradients of a scaled loss, which would underflow in float16 otherwise.

    A step with gradients that are not finite is skipped, and the scale is reduced. The scale is part of the state.
    """

    def __init__(self, inner: Optimizer, scaler: torch.amp.GradScaler) -> None:
        super().__init__(inner)
        self._inner, self._scaler = inner, scaler

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The scaled loss, whose `backward` to call."""
        return self._scaler.scale(loss)

    def unscale(self) -> None:
        """Unscale the gradients before the step, to clip them."""
        self._scaler.unscale_(self._inner)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step on the unscaled gradients."""
        self._scaler.step(self._inner)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """{"parts": [the optimizer's state], "scaler": the scaler's state}: tensors, numbers, lists and dicts."""
        return super().state_dict() | {"scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `CombinedOptimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._scaler.load_state_dict(state_dict["scaler"])
