"""A round's accepted updates on disk until they are combined: a server's memory does not grow with its sites."""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fedfms.errors import UpdateError
from fedfms.methods import Tensors

_ALIGN = 64  # bytes: what vector instructions like


def memory_mapped(arrays: Iterable[tuple[str, np.ndarray]], folder: Path) -> Tensors:
    """The same values as tensors that lie in a file: the system's page cache holds them, not this process.

    Each array is taken once, one after another, and may be made when its turn comes. The file has no name and mode
    0600: it is gone with the last of its tensors, and with the process, however that ends. What writes to a tensor
    gets pages of its own; the file stays as it is.

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
        reason = f"the server cannot keep it ({error.strerror})"
        raise UpdateError(reason, do="make room in the folder of its runs") from None
    return {
        name: torch.from_numpy(np.ndarray(shape, dtype, buffer=mapped, offset=offset))
        for name, dtype, shape, offset in places
    }


def clear(folder: Path) -> None:
    """Remove what a killed run may have left: a file system without nameless files shows one for a moment."""
    shutil.rmtree(folder, ignore_errors=True)
