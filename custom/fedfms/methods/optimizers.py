"""Several optimizers as one, for methods that do not step all parameters alike; one with the scale of its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class Together(Optimizer):
    """Optimizers of different parameters that step together; `param_groups` are theirs, one after another.

    Raises:
        ValueError: two of them have a parameter in common.
    """

    def __init__(self, *parts: Optimizer) -> None:
        # The base class refuses a parameter that comes twice; its own groups then give way to those of the parts.
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._regroup()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of each, in the order given."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """{"parts": the state of each, in the order given}: tensors, numbers, lists and dicts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` of the same optimizers gave.

        Raises:
            ValueError: it is of other optimizers.
        """
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._regroup()  # torch puts new groups in the place of the old ones

    def _regroup(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]


class Scaled(Optimizer):
    """An optimizer on gradients of a scaled loss, which float16 would lose otherwise; the scale is part of its state.

    A step whose gradients are not finite is left out, and the scale falls.
    """

    def __init__(self, inner: Optimizer, scaler: torch.amp.GradScaler) -> None:
        super().__init__([{"params": group["params"]} for group in inner.param_groups], {})
        self._inner, self._scaler = inner, scaler
        self.param_groups = inner.param_groups

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """What to call `backward` on in place of the loss."""
        return self._scaler.scale(loss)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step on the gradients in their true size."""
        self._scaler.step(self._inner)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """{"inner": the optimizer's state, "scaler": the scale's}: tensors, numbers, lists and dicts."""
        return {"inner": self._inner.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` of the same optimizer gave.

        Raises:
            ValueError: it is of another optimizer.
        """
        self._inner.load_state_dict(state_dict["inner"])
        self._scaler.load_state_dict(state_dict["scaler"])
        self.param_groups = self._inner.param_groups  # torch puts new groups in the place of the old ones
