"""Optimizers made of others: different ones for different parameters, and one with loss scaling for float16."""

from typing import Any

import torch
from torch.optim import Optimizer


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
