"""Memory-mapped updates: a round's accepted updates lie on disk, so that memory does not grow with the sites."""

import mmap
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fedfms.errors import UpdateError
from fedfms.methods import Tensors

_ALIGN = 64  # bytes: suits vector instructions


def memory_mapped(arrays: Iterable[tuple[str, np.ndarray]], folder: Path) -> Tensors:
    """Tensors with the values of `arrays` in a file of `folder`, held by the page cache, not by the process.

    Arrays are consumed one at a time. The file has no name and mode 0600; it disappears with the last of its tensors
    or with the process. Writing to a tensor copies the page; the file does not change.

    Raises:
        UpdateError: no room or no permission in `folder`.
    """
    places: list[tuple[str, np.dtype, tuple[int, ...], int]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for name, array in arrays:
                file.write(bytes(-file.tell() % _ALIGN))
                places.append((name, array.dtype, array.shape, file.tell()))
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.write(bytes(_ALIGN))  # an empty file cannot be mapped
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        reason = f"the server cannot store it ({error.strerror})"
        raise UpdateError(reason, do="make room in the folder of the server's runs") from None
    return {
        name: torch.from_numpy(np.ndarray(shape, dtype, buffer=mapped, offset=offset))
        for name, dtype, shape, offset in places
    }


def clear(folder: Path) -> None:
    """Remove what a killed run left: a file system without unnamed files shows each for a moment."""
    shutil.rmtree(folder, ignore_errors=True)
