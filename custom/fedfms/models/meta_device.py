"""Builds networks on torch's meta device: names, shapes and dtypes without values or computation.

Some of torch's operators for this device import its compiler, which takes two seconds per process; they are skipped.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _NoValues(TorchFunctionMode):
    """Skips operations that change values only."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        tensor = args[0] if args else named.get("tensor")  # torch's own initialisers pass it by name
        if isinstance(tensor, Tensor) and tensor.is_meta:
            if func in (nn.init.normal_, Tensor.normal_):
                return tensor
            if func is Tensor.mul and tensor.is_floating_point() and isinstance(args[-1], float):
                return torch.empty_like(tensor)
        if func is torch.randn and torch.device(named.get("device") or "cpu").type == "meta":
            func, named = torch.empty, {key: value for key, value in named.items() if key != "generator"}
        return func(*args, **named)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Tensors created inside have shape and dtype, but no values and no memory."""
    with _NoValues(), torch.device("meta"):
        yield
