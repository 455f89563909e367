"""A limit on the arrays of a message at the server, looked at before one is made: NVFLARE 2.9 has none.

A site's update is decoded before any component sees it. Small arrays lie in the message as .npy; what is larger the
server fetches piece by piece, each an .npz: a zip, in which a site can pack a thousandfold. So the limit is where
NVFLARE makes arrays of these bytes, for the whole process of the server's job: what an array says of itself is held
against the budget first, and a fetch that goes beyond it is cancelled. NVFLARE's persistor lets torch's tensors in by a
way of their own; no message of ours has one, so none is made or fetched. It bounds arrays, not texts or numbers; the
bytes of one unpacked message are NVFLARE's own `streaming_max_blob_size`.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, Any

import numpy as np
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.app_common.np.np_downloader import ArrayConsumer
from nvflare.app_opt.pt.decomposers import TensorDecomposer

from fedfms.flare.revocation import wrap

# So that an honest update of the wrong study or version still comes in, and is told by the guard what is wrong with it.
TIMES, MORE = 4, 64 << 20


def limit_arrays(model_bytes: int) -> None:
    """From now on this process takes no array, and no fetched set of arrays, beyond `TIMES` a model and `MORE` bytes,
    and no tensor of torch's.

    Raises:
        AttributeError: NVFLARE has changed the place where it makes arrays.
    """
    most = TIMES * model_bytes + MORE

    def one(original: Any, _: Any, data: bytes, *rest: Any) -> Any:
        _check(declared(io.BytesIO(data)), most)
        return original(data, *rest)

    def several(original: Any, _: Any, items: list[bytes], result: Any) -> Any:
        had = sum(array.nbytes for array in (result or {}).values())
        _check(had + sum(map(packed, items)), most)
        return original(items, result)

    wrap(NumpyArrayDecomposer, "native_recompose", one)
    wrap(ArrayConsumer, "consume_items", several)
    wrap(TensorDecomposer, "native_recompose", _no_tensor)
    wrap(TensorDecomposer, "download", _no_tensor)


def declared(file: IO[bytes]) -> int:
    """Bytes that an .npy file says its array has.

    Raises:
        ValueError: it is no such file, or of objects.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError("an array of a kind that is not sent")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return math.prod(shape) * dtype.itemsize


def packed(item: bytes) -> int:
    """Bytes that the arrays of an .npz file say that they have, or that they unpack to, whichever is more."""
    total = 0
    with zipfile.ZipFile(io.BytesIO(item)) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                total += max(declared(member), info.file_size)
    return total


def _no_tensor(*_: Any, **__: Any) -> Any:
    raise ValueError("a tensor in a message, where only arrays are taken")


def _check(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"arrays of {size / 1e6:.0f} MB in a message, at most {most / 1e6:.0f} are taken")
