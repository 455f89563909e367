"""Limit the size of arrays that the server decodes from a message, before it allocates them; NVFLARE 2.9 has no limit.

NVFLARE decodes a site's update before any component sees it. Small arrays are in the message as .npy. The server
fetches larger ones in chunks, each an .npz: a zip file, which can expand a thousandfold. So this module patches the
methods of NVFLARE that decode these bytes, for the whole process of the server's job: they compare the size that an
array declares with the limit first, and cancel a download that exceeds it. NVFLARE's persistor also registers a
decoder for torch tensors. No message of this package has any, so they are rejected. The limit covers arrays, not
texts or numbers; NVFLARE's `streaming_max_blob_size` limits the bytes of a message.
"""

import io
import math
import zipfile
from typing import IO, Any

import numpy as np
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.app_common.np.np_downloader import ArrayConsumer
from nvflare.app_opt.pt.decomposers import TensorDecomposer

from fedfms.flare.revocation import patch_method

# Generous: an honest update of the wrong study or version must be decoded, so that its validation can name the fault.
MODELS, EXTRA_BYTES = 4, 64 << 20


def limit_arrays(model_bytes: int) -> None:
    """Make this process reject torch tensors, and arrays of more than `MODELS` models plus `EXTRA_BYTES`.

    Raises:
        AttributeError: NVFLARE has changed the methods that decode arrays.
    """
    limit = MODELS * model_bytes + EXTRA_BYTES

    def decode_array(original: Any, _: Any, data: bytes, *rest: Any) -> Any:
        _check(npy_nbytes(io.BytesIO(data)), limit)
        return original(data, *rest)

    def decode_chunk(original: Any, _: Any, items: list[bytes], result: Any) -> Any:
        decoded = sum(array.nbytes for array in (result or {}).values())
        _check(decoded + sum(map(npz_nbytes, items)), limit)
        return original(items, result)

    patch_method(NumpyArrayDecomposer, "native_recompose", decode_array)
    patch_method(ArrayConsumer, "consume_items", decode_chunk)
    patch_method(TensorDecomposer, "native_recompose", _reject_tensor)
    patch_method(TensorDecomposer, "download", _reject_tensor)


def npy_nbytes(file: IO[bytes]) -> int:
    """Size of the array that the header of an .npy file declares.

    Raises:
        ValueError: it is not an .npy file, or its array holds objects.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError("an array has an unsupported .npy version")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return math.prod(shape) * dtype.itemsize


def npz_nbytes(item: bytes) -> int:
    """Size of the arrays of an .npz file: as declared by their headers or unpacked, whichever is larger."""
    total = 0
    with zipfile.ZipFile(io.BytesIO(item)) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                total += max(npy_nbytes(member), info.file_size)
    return total


def _reject_tensor(*_: Any, **__: Any) -> Any:
    raise ValueError("a message holds a torch tensor; only arrays are accepted")


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"a message holds arrays of {size / 1e6:.0f} MB; the limit is {limit / 1e6:.0f} MB")
