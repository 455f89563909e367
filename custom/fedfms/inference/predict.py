"""Masks of all inputs, one after another; one that cannot be read does not keep the others from theirs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedfms.errors import DataError
from fedfms.inference.inputs import Fault, Input
from fedfms.inference.loading import LoadedModel
from fedfms.inference.outputs import OutputFolder, mask_files, overlay_files
from fedfms.inference.predictor import native, probabilities


@dataclass(frozen=True)
class Outcome:
    """What was found in an input: pixels (voxels) by structure; or its `fault`, one line that names no file."""

    slices: int = 0
    pixels: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    fault: str = ""


def predict(
    loaded: LoadedModel, inputs: Sequence[Input], out: OutputFolder, *,
    batch_size: int, overlays: bool = False, done: Callable[[], None] = lambda: None,
) -> list[Outcome]:  # fmt: skip
    """Write the masks of each input, and its overlays if wanted; `done` is called after each.

    Raises:
        DataError: the output folder does not take a file.
    """
    outcomes = []
    for number, one in enumerate(inputs, start=1):
        try:
            outcomes.append(_one(loaded, one, out, batch_size, overlays))
        except _Unreadable as unreadable:
            outcomes.append(Outcome(fault=f"input {number} of {len(inputs)}: {unreadable}"))
        done()
    return outcomes


class _Unreadable(Exception):
    """Why an input cannot be read."""


def _one(loaded: LoadedModel, one: Input, out: OutputFolder, batch_size: int, overlays: bool) -> Outcome:
    started = time.monotonic()
    try:
        source = one.read()
    except Fault as fault:
        raise _Unreadable(str(fault)) from None
    except DataError as error:
        raise _Unreadable(error.line()) from None
    structures, names = loaded.study.data.structures, loaded.study.structure_names
    precision = loaded.study.train.precision
    made = probabilities(loaded.model, source.slices, batch_size, precision, tuned=loaded.tuned)
    found = [
        native(each, (pixels.shape[0], pixels.shape[1]), structures)
        for each, pixels in zip(made, source.slices, strict=True)
    ]
    counts = np.sum([slice_.masks.sum(axis=(1, 2)) for slice_ in found], axis=0)
    pixels_found = dict(zip(names, map(int, counts), strict=True))
    files = mask_files(one.name, source, found, names)
    if overlays:
        files |= overlay_files(one.name, source, found, names)
    seconds = time.monotonic() - started
    line = {"input": one.name, "slices": len(found), "pixels": pixels_found, "seconds": round(seconds, 3)}
    out.put(line, files)
    return Outcome(len(found), pixels_found, seconds)
