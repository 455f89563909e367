"""Codecs: compressed forms of one float32 tensor, and the layout of a payload of tensors.

Other dtypes (counters, flags) travel whole. So do the statistics of batch normalisation: they are small, and a variance
that rounding takes below 0 makes every output NaN. An array has its tensor's own name in every form, so that a site's
filters by name see what they expect.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]
ArrayStore = Callable[[Iterable[tuple[str, np.ndarray]]], Tensors]  # stores arrays one by one, in memory or on disk
Layout = dict[str, tuple[tuple[int, ...], str]]  # of a payload: name -> (shape, dtype) of its array

_STATISTICS = ("running_mean", "running_var")  # torch's names, at the end of a tensor's
_LEVELS = 127  # of int8 on either side of 0
_SCALE_BYTES = 2
_SMALLEST, _LARGEST = 0x0080, 0x7F7F  # bfloat16: the smallest normal, and the largest finite number


@dataclass(frozen=True)
class Codec:
    """One compressed form.

    Attributes:
        encode: float32 tensor of finite values -> array.
        decode: (array, the tensor's shape) -> float32 tensor.
        layout: the tensor's shape -> (shape, dtype) of the array.
    """

    name: str
    encode: Callable[[torch.Tensor], np.ndarray]
    decode: Callable[[np.ndarray, tuple[int, ...]], torch.Tensor]
    layout: Callable[[tuple[int, ...]], tuple[tuple[int, ...], str]]


def in_memory(arrays: Iterable[tuple[str, np.ndarray]]) -> Tensors:
    """The arrays as tensors that share their memory: the default `ArrayStore`."""
    return {name: torch.from_numpy(array) for name, array in arrays}


def compressed(name: str, tensor: torch.Tensor) -> bool:
    """Whether a codec applies to the tensor."""
    return tensor.dtype == torch.float32 and not name.endswith(_STATISTICS)


def layout(like: Mapping[str, torch.Tensor], codec: Codec | None) -> Layout:
    """Layout of a payload of the tensors `like` (values do not matter); without a codec, of the tensors themselves."""
    return {
        name: codec.layout(tuple(tensor.shape)) if codec is not None and compressed(name, tensor)
        else (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in like.items()
    }  # fmt: skip


def nbytes(of: Layout) -> int:
    """Bytes of a payload of that layout."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in of.values())


def _to_half(dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
    """Round to the nearest number of a narrow dtype; clamp to its range."""
    largest = torch.finfo(dtype).max
    return tensor.clamp(-largest, largest).to(dtype)


def _encode_bfloat16(tensor: torch.Tensor) -> np.ndarray:
    bits: np.ndarray = _to_half(torch.bfloat16, tensor).view(torch.int16).numpy()
    return bits.view(np.uint16)  # NumPy has no bfloat16


def _decode_bfloat16(array: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    bits = torch.from_numpy(array.view(np.int16).copy())
    return bits.view(torch.bfloat16).to(torch.float32).reshape(shape)


def _encode_float16(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = _to_half(torch.float16, tensor).numpy()
    return array


def _decode_float16(array: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32)).reshape(shape)


def _same_shape(dtype: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    return shape, dtype


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, their length): one row per output channel of a matrix or kernel, one row for a vector."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // rows


def _layout_int8(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    rows, length = _rows(shape)
    return (rows, _SCALE_BYTES + length), "uint8"


def _encode_int8(tensor: torch.Tensor) -> np.ndarray:
    """Each row: its scale as bfloat16 (little-endian), then -127..127 in one byte per element.

    The scale is rounded up, so that a row's largest value fits. It has two bytes: four bytes for 35,000 rows would be
    0.6 % of FedMSA's payload, and with two, a level times a scale is exact in float32.
    """
    flat = tensor.detach().reshape(_rows(tuple(tensor.shape)))
    largest = flat.abs().amax(dim=1)
    up = ((largest / _LEVELS).view(torch.int32) + 0xFFFF) >> 16  # bits of floats above 0 are in the floats' order
    bits = torch.where(largest > 0, up.clamp(_SMALLEST, _LARGEST), 0)
    scale = (bits << 16).view(torch.float32)[:, None]
    levels = torch.where(scale > 0, flat / scale, 0.0).round().clamp(-_LEVELS, _LEVELS)
    head = bits.numpy().astype("<u2").view(np.uint8).reshape(-1, _SCALE_BYTES)
    return np.concatenate([head, levels.to(torch.int8).numpy().view(np.uint8)], axis=1)


def _decode_int8(array: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    bits = np.ascontiguousarray(array[:, :_SCALE_BYTES]).view("<u2").astype(np.int32) << 16
    levels = np.ascontiguousarray(array[:, _SCALE_BYTES:]).view(np.int8).astype(np.float32)
    return torch.from_numpy(levels).mul_(torch.from_numpy(bits.view(np.float32))).reshape(shape)


CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("bfloat16", _encode_bfloat16, _decode_bfloat16, partial(_same_shape, "uint16")),
        Codec("float16", _encode_float16, _decode_float16, partial(_same_shape, "float16")),
        Codec("int8", _encode_int8, _decode_int8, _layout_int8),
    )
}
