"""The agreed form of an update: names, shapes and dtypes of its arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfms.compression import Codec, layout
from fedfms.methods import Tensors

PARTS = ("names", "shapes", "dtypes")  # of a schema's hash, in this order
_DIGEST_BYTES = 8  # of each part


@dataclass(frozen=True)
class Schema:
    """Name -> (shape, dtype). Both sides compute it from the model before the first round."""

    tensors: Mapping[str, tuple[tuple[int, ...], str]]

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Schema:
        """The schema of a dict of arrays or of CPU tensors."""
        return cls({name: describe(array) for name, array in arrays.items()})

    @classmethod
    def of_payload(cls, tensors: Tensors, names: Iterable[str], codec: Codec | None) -> Schema:
        """The schema of the arrays in which these tensors travel; values do not matter."""
        return cls(layout({name: tensors[name] for name in names}, codec))

    def hash(self) -> str:
        """A digest each of names, shapes and dtypes; equal schemas have equal hashes."""
        rows = sorted((name, *form) for name, form in self.tensors.items())
        return "-".join(_digest(column) for column in zip(*rows, strict=True)) if rows else "empty"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.tensors.values())


def describe(array: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an array or a CPU tensor, in NumPy's words."""
    return tuple(array.shape), str(array.dtype).removeprefix("torch.")


def _digest(column: tuple[Any, ...]) -> str:
    return hashlib.blake2b(repr(column).encode(), digest_size=_DIGEST_BYTES).hexdigest()
