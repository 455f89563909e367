"""Checks of an update before it may touch the global model: each returns the reason to refuse it, or None.

NVFLARE's own aggregators take NaN, shapes that broadcast, missing names and negative counts without a word.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_PARTS = ("names", "shapes", "dtypes")  # of a schema's hash, in its order
_DIGEST = 8  # bytes of each
MAX_SAMPLES = 10_000_000  # more slices than any hospital has; a larger count would own the mean


@dataclass(frozen=True)
class Schema:
    """What an update must look like: name -> (shape, dtype). Agreed on from the model, before the first round."""

    tensors: Mapping[str, tuple[tuple[int, ...], str]]

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Schema:
        """The schema of a dict of arrays or of CPU tensors."""
        return cls({name: _describe(array) for name, array in arrays.items()})

    def hash(self) -> str:
        """What both sides compute to see that they mean the same: a digest each of names, shapes and dtypes."""
        rows = sorted((name, *form) for name, form in self.tensors.items())
        return "-".join(_digest(column) for column in zip(*rows, strict=True)) if rows else "empty"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that it describes."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.tensors.values())


def check_hash(told: Any, schema: Schema) -> str | None:
    """The site has built the study's shared tensors as the server has: `Schema.hash` of both is the same."""
    told, own = told if isinstance(told, str) else "", schema.hash()
    if told == own:
        return None
    parts, ours = told[: len(own)].split("-"), own.split("-")
    if len(parts) != len(ours):
        return "it does not say of what model it is"
    differ = [of for of, part, our in zip(_PARTS, parts, ours, strict=False) if part != our]
    return f"the {' and '.join(differ) or 'tensors'} of its model are not those that the job began with"


def check_names(arrays: Mapping[str, Any], schema: Schema) -> str | None:
    """The update has exactly the schema's names."""
    missing = sorted(set(schema.tensors) - set(arrays))
    extra = sorted(str(name) for name in set(arrays) - set(schema.tensors))
    if missing:
        return f"{len(missing)} tensors are missing, the first is {missing[0]}"
    if extra:
        return f"{len(extra)} tensors are not of this study, the first is {extra[0][:80]}"
    return None


def check_tensors(arrays: Mapping[str, Any], schema: Schema) -> str | None:
    """Every tensor is an array of the schema's shape and dtype, and all its values are finite."""
    for name, (shape, dtype) in schema.tensors.items():
        array = arrays[name]
        if type(array) is not np.ndarray:  # a masked one hides what is not finite
            return f"{name} is no array"
        if _describe(array) != (shape, dtype):
            return f"{name} is {array.dtype} {tuple(array.shape)}, not {dtype} {shape}"
        if not np.isfinite(array).all():
            return f"{name} has values that are not finite"
    return None


def check_samples(samples: Any, declared: int | None = None) -> str | None:
    """The sample count is a whole number from 1 to `MAX_SAMPLES`, and at most what the site declared at the start."""
    if isinstance(samples, bool) or not isinstance(samples, int | float | np.integer | np.floating):
        return "the number of samples is missing or no number"
    if not 0 < samples <= MAX_SAMPLES or samples != int(samples):  # a comparison with NaN is false
        return f"the number of samples is not a whole number from 1 to {MAX_SAMPLES:,}"
    if declared is not None and samples > declared:
        return f"it counts {int(samples)} samples, and the site declared {declared}"
    return None


def check_dice(dice: Any) -> str | None:
    """The validation Dice, by which the best model is chosen, is missing or a number in 0..1."""
    if dice is None:
        return None
    if isinstance(dice, bool) or not isinstance(dice, int | float | np.floating) or not 0 <= dice <= 1:
        return "its validation Dice is no number in 0..1"
    return None


def _describe(array: Any) -> tuple[tuple[int, ...], str]:
    return tuple(array.shape), str(array.dtype).removeprefix("torch.")


def _digest(column: tuple[Any, ...]) -> str:
    return hashlib.blake2b(repr(column).encode(), digest_size=_DIGEST).hexdigest()
