"""Validation of an update before it is aggregated: each check returns a rejection reason, or None.

NVFLARE's own aggregators accept NaN, shapes that broadcast, missing names and negative sample counts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedfms.compression import Codec, read_upload
from fedfms.errors import UpdateError
from fedfms.federation.messages import DIFFERENCES, WEIGHTS, Expected, Message
from fedfms.federation.update_schema import PARTS, Schema, describe
from fedfms.methods import Tensors

MAX_SAMPLES = 10_000_000  # more slices than any hospital has; a larger count would dominate the mean


def rejection_reason(message: Message, expected: Expected, declared: int | None) -> str | None:
    """Why a message must not be decoded or aggregated; None where it is valid.

    Cheap checks come first: no array is read before the sender, the round and the size are known to be right.

    Args:
        declared: the sample count that the site declared at its start, if any.
    """
    if any(not isinstance(name, str) or name != message.sender for name in message.names):
        return "it names another site than the one that sent it"
    if not isinstance(message.job, str) or message.job != expected.job:
        return "it belongs to another job"
    kind = WEIGHTS if expected.base is None else DIFFERENCES
    if message.kind != kind:
        return f"it holds {message.kind}, not {kind}"
    # The fields may hold anything; comparing an array would raise, and end the round for all sites.
    if not all(type(claimed) is int and claimed == expected.round for claimed in message.rounds):
        claimed = message.rounds[-1] if type(message.rounds[-1]) is int else "unknown"
        return f"it belongs to round {claimed}, not to round {expected.round}"
    if expected.base is not None and not (isinstance(message.base, str) and message.base == expected.base != ""):
        return "its differences refer to another model than the one that the site was sent"
    return (
        check_samples(message.samples, declared)
        or check_dice(message.dice)
        or check_names(message.arrays, expected.update)
        or check_tensors(message.arrays, expected.update)
        or check_hash(message.schema, expected.shared)
    )


def check_hash(claimed: Any, schema: Schema) -> str | None:
    """The site built the same shared tensors as the server: both have the same `Schema.hash`."""
    claimed, own = claimed if isinstance(claimed, str) else "", schema.hash()
    if claimed == own:
        return None
    parts, ours = claimed[: len(own)].split("-"), own.split("-")
    if len(parts) != len(ours):
        return "it does not describe its model"
    differ = [part for part, theirs, our in zip(PARTS, parts, ours, strict=False) if theirs != our]
    return f"the {' and '.join(differ) or 'tensors'} of its model differ from those of the job's model"


def check_names(arrays: Mapping[str, Any], schema: Schema) -> str | None:
    """The update has exactly the schema's names."""
    missing = sorted(set(schema.tensors) - set(arrays))
    extra = sorted(str(name) for name in set(arrays) - set(schema.tensors))
    if missing:
        return f"{len(missing)} tensors are missing, the first is {missing[0]}"
    if extra:
        return f"{len(extra)} tensors are not part of the study, the first is {extra[0][:80]}"
    return None


def check_tensors(arrays: Mapping[str, Any], schema: Schema) -> str | None:
    """Every tensor is an array of the schema's shape and dtype, and all its values are finite."""
    for name, (shape, dtype) in schema.tensors.items():
        array = arrays[name]
        if type(array) is not np.ndarray:  # a masked array hides values that are not finite
            return f"{name} is not an array"
        if describe(array) != (shape, dtype):
            return f"{name} is {array.dtype} {tuple(array.shape)}, not {dtype} {shape}"
        if not np.isfinite(array).all():
            return f"{name} has values that are not finite"
    return None


def check_samples(samples: Any, declared: int | None = None) -> str | None:
    """The sample count is a whole number from 1 to `MAX_SAMPLES`, and at most what the site declared."""
    if isinstance(samples, bool) or not isinstance(samples, int | float | np.integer | np.floating):
        return "the number of samples is missing or not a number"
    if not 0 < samples <= MAX_SAMPLES or samples != int(samples):  # a comparison with NaN is false
        return f"the number of samples is not a whole number from 1 to {MAX_SAMPLES:,}"
    if declared is not None and samples > declared:
        return f"it counts {int(samples)} samples, and the site declared {declared}"
    return None


def check_dice(dice: Any) -> str | None:
    """The validation Dice, which selects the best model, is missing or a number in 0..1."""
    if dice is None:
        return None
    if isinstance(dice, bool) or not isinstance(dice, int | float | np.floating) or not 0 <= dice <= 1:
        return "its validation Dice is not a number in 0..1"
    return None


def decoded(arrays: Mapping[str, np.ndarray], received: Tensors, codec: Codec | None) -> Iterator[tuple[str, Any]]:
    """The whole arrays of a valid message, decoded one after another.

    Args:
        received: the tensors that the site was sent, to which differences are added.

    Raises:
        UpdateError: a decoded array is not finite.
    """
    for name, array in arrays.items():
        if codec is None:
            yield name, array
            continue
        tensors = read_upload({name: array}, received, codec)
        whole = {name: tensors[name].numpy()}
        if reason := check_tensors(whole, Schema.of(tensors)):
            raise UpdateError(reason)
        yield name, whole[name]
