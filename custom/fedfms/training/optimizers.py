"""Several optimizers as one, for methods that do not step all their parameters alike."""

from __future__ import annotations

from typing import Any

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
