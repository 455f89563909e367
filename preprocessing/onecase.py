"""Conversion of one case, in a worker process: read it with the data set's reader, check it, write its slices.

Any exception of the reader becomes a fault of this case. Only the text of a `Fault` is shown, because other texts may
hold a file name or a header field.
"""

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
from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.raw import reject_outside
from fedfms.preprocessing.recipe import Decoded, Pixels, RawCase
from fedfms.preprocessing.target import ending, make_folders, write_if_changed


@dataclass(frozen=True)
class Task:
    """A case to convert."""

    id: str  # pseudonym
    case: RawCase
    read: Callable[[RawCase], Decoded]
    root: Path  # the raw folder, resolved
    values: frozenset[int]  # label values of the structures, and 0
    out: Path  # the site's output folder


@dataclass(frozen=True)
class Done:
    """The slices of a converted case, or its fault."""

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
        with silenced():
            reject_outside(task.root, task.case.files.values())
            decoded = task.read(task.case)
            volume = _python_numbers(decoded.volume) if decoded.volume else None
            _check(decoded, volume, task.values)
    except Fault as fault:
        return Done(task.id, fault=" ".join(str(fault).split()))
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside a library
        return Done(task.id, fault=f"the case cannot be read: damaged, or of another kind ({type(error).__name__})")
    make_folders(task.out)
    slices = tuple(_write(task, number, *pair) for number, pair in enumerate(decoded.slices))
    return Done(task.id, slices, volume)


def exit_with_parent() -> None:
    """End this worker process when its parent ends, even by a kill.

    Otherwise it would write at the same time as the next conversion, and then wait forever.
    """

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress log lines and warnings of libraries, which name files and header fields."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _python_numbers(volume: Volume) -> Volume:
    """The volume without NumPy's numbers, which cannot be written as JSON."""
    first, second, third = map(int, volume.shape)
    affine, positions = tuple(map(float, volume.affine)), tuple(map(int, volume.positions))
    return Volume((first, second, third), affine, int(volume.axis), positions)


def _check(decoded: Decoded, volume: Volume | None, values: frozenset[int]) -> None:
    """Check that a reader's result keeps the contract of `Decoded`."""
    if not decoded.slices:
        raise Fault("it has no slices")
    for number, (image, label) in enumerate(decoded.slices):
        is_image = image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
        if not is_image or image.dtype != np.uint8 or label.dtype != np.uint8 or label.ndim != 2:
            raise Fault(f"slice {number} is not of 8 bits, or not (height, width) with 1 or 3 channels")
        if image.shape[:2] != label.shape:
            raise Fault(f"slice {number}: image and mask differ in size")
        unknown = sorted(set(np.unique(label).tolist()) - values)
        if unknown:
            raise Fault(f"slice {number} has label values {unknown[:8]} that no structure has")
    if volume:
        fault = volume.fault([label.shape for _, label in decoded.slices])
        if fault or not np.isfinite(volume.affine).all():
            raise Fault(fault or "the volume's affine is not finite")


def _write(task: Task, number: int, image: Pixels, label: Pixels) -> Slice:
    names = f"images/{task.id}_{number}{ending(image)}", f"labels/{task.id}_{number}{ending(label)}"
    for name, pixels in zip(names, (image, label), strict=True):
        write_if_changed(task.out / name, pixels)
    return Slice(
        *names,
        width_px=image.shape[1],
        height_px=image.shape[0],
        channels=1 if image.ndim == 2 else 3,
        image_sha256=pixel_sha256(image),
        label_sha256=pixel_sha256(label),
        values=tuple(np.unique(label).tolist()),
    )
