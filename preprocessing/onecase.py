"""One case, in a worker process: read by its data set's reader, checked, written.

Whatever the reader raises is this case's fault; only the text of a `Fault` is passed on, for any other may hold
a file's name or a header's field.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedfms.data.manifest import Slice, Volume, pixel_sha256
from preprocessing.images import Fault
from preprocessing.raw import refuse_outside
from preprocessing.recipe import Decoded, Pixels, RawCase
from preprocessing.target import begin, ending, keep_or_write


@dataclass(frozen=True)
class Task:
    """A case under its pseudonym `id`: what to read and how, the resolved raw root, the label values that
    structures have (and 0), and the site's output folder.
    """

    id: str
    case: RawCase
    read: Callable[[RawCase], Decoded]
    root: Path
    values: frozenset[int]
    out: Path


@dataclass(frozen=True)
class Done:
    """What became of a case: its slices, or a fault."""

    id: str
    slices: tuple[Slice, ...] = ()
    volume: Volume | None = None
    fault: str = ""


def convert_case(task: Task) -> Done:
    """Read, check and write a case.

    Raises:
        OSError: the output cannot be written.
    """
    try:
        with quiet():
            refuse_outside(task.root, task.case.files.values())
            decoded = task.read(task.case)
            volume = _plain(decoded.volume) if decoded.volume else None
            _check(decoded, volume, task.values)
    except Fault as fault:
        return Done(task.id, fault=" ".join(str(fault).split()))
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside a library
        return Done(task.id, fault=f"the case cannot be read: damaged, or of another kind ({type(error).__name__})")
    begin(task.out)
    slices = tuple(_write(task, number, *pair) for number, pair in enumerate(decoded.slices))
    return Done(task.id, slices, volume)


def end_with_parent() -> None:
    """In a worker process: end it when the process that started it does, be it by a kill. It would wait for ever,
    and before that write beside the next run.
    """
    threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


@contextmanager
def quiet() -> Iterator[None]:
    """No log line and no warning of a library, for they name files and header fields."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _plain(volume: Volume) -> Volume:
    """With Python's own numbers, for numpy's cannot be written as JSON."""
    first, second, third = map(int, volume.shape)
    affine, positions = tuple(map(float, volume.affine)), tuple(map(int, volume.positions))
    return Volume((first, second, third), affine, int(volume.axis), positions)


def _check(decoded: Decoded, volume: Volume | None, values: frozenset[int]) -> None:
    """See that a reader gave what the contract says."""
    if not decoded.slices:
        raise Fault("it has no slices")
    for number, (image, label) in enumerate(decoded.slices):
        if not _is_image(image) or label.dtype != np.uint8 or label.ndim != 2:
            raise Fault(f"slice {number} is not of 8 bits, or not (height, width) with 1 or 3 channels")
        if image.shape[:2] != label.shape:
            raise Fault(f"slice {number}: image and mask differ in size")
        odd = sorted(set(np.unique(label).tolist()) - values)
        if odd:
            raise Fault(f"slice {number} has label values {odd[:8]} that no structure has")
    if volume:
        fault = volume.fault([label.shape for _, label in decoded.slices])
        if fault or not np.isfinite(volume.affine).all():
            raise Fault(fault or "the volume's affine is not finite")


def _is_image(image: Pixels) -> bool:
    return bool(
        image.dtype == np.uint8 and image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
    )


def _write(task: Task, number: int, image: Pixels, label: Pixels) -> Slice:
    names = f"images/{task.id}_{number}{ending(image)}", f"labels/{task.id}_{number}{ending(label)}"
    for name, pixels in zip(names, (image, label), strict=True):
        keep_or_write(task.out / name, pixels)
    return Slice(
        *names,
        width_px=image.shape[1],
        height_px=image.shape[0],
        channels=1 if image.ndim == 2 else 3,
        image_sha256=pixel_sha256(image),
        label_sha256=pixel_sha256(label),
        values=tuple(np.unique(label).tolist()),
    )
