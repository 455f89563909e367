"""The methods, by name. A new one: a file with a `Method`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedfms.errors import StudyError
from fedfms.methods.base import Combined, Method, Partition, Tensors, Update
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.fedsam import FedSAM

METHODS: Mapping[str, type[Method]] = {method.name: method for method in (FedMSA, FedSAM)}


def make_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method `name` with its options.

    Raises:
        StudyError: there is no such method, or it has no such option.
    """
    if name not in METHODS:
        raise StudyError(f"unknown method {name!r}", where="study", do=f"one of {sorted(METHODS)}")
    return METHODS[name](**options)


__all__ = ["METHODS", "Combined", "Method", "Partition", "Tensors", "Update", "make_method"]
