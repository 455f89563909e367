"""The codecs: rounding errors are bounded, and arrays have the planned layout."""

import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfms.compression import CODECS, COMPRESSIONS, layout, nbytes
from fedfms.study import FederationSpec

EACH = pytest.mark.parametrize("name", sorted(CODECS))
FEW = settings(max_examples=40, deadline=None)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _tensors(elements: st.SearchStrategy[float] = FLOATS) -> st.SearchStrategy[torch.Tensor]:
    return hnp.arrays(np.float32, SHAPES, elements=elements).map(lambda array: torch.from_numpy(np.array(array)))


def _bound(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The maximum rounding error of each element."""
    size = tensor.double().abs()
    if name == "bfloat16":  # 8 bits; its largest finite number is 0.4 % below float32's
        return size * 2**-8 + 1e-40
    if name == "float16":
        return torch.where(size <= 65504, size * 2**-11 + 2**-25, size - 65504)
    rows = size.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else size.reshape(1, -1)
    levels = rows.amax(dim=1, keepdim=True).expand_as(rows) / 127 * (1 + 2**-7)
    return (levels / 2 * (1 + 2**-6) + 1.2e-38).reshape(tensor.shape)  # plus one level where the scale is the smallest


def _round_trip(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return CODECS[name].decode(CODECS[name].encode(tensor), tuple(tensor.shape))


@EACH
@FEW
@given(tensor=_tensors())
def test_the_rounding_error_is_bounded(name: str, tensor: torch.Tensor) -> None:
    back = _round_trip(name, tensor)
    assert back.dtype == torch.float32
    assert back.shape == tensor.shape
    assert torch.isfinite(back).all()
    assert ((back.double() - tensor.double()).abs() <= _bound(name, tensor)).all()


@EACH
@FEW
@given(tensor=_tensors())
def test_an_encoded_array_has_the_layout(name: str, tensor: torch.Tensor) -> None:
    array, (planned,) = CODECS[name].encode(tensor), layout({"w": tensor}, CODECS[name]).values()
    assert (array.shape, str(array.dtype)) == planned
    assert array.nbytes == nbytes({"w": planned})


@EACH
@FEW
@given(tensor=_tensors(st.floats(-1000, 1000, width=32)))
def test_a_decoded_tensor_is_encoded_without_loss(name: str, tensor: torch.Tensor) -> None:
    once = _round_trip(name, tensor)
    twice = _round_trip(name, once)
    # In int8 the scale follows the largest level; a scale that was rounded up may not reach 127 levels again.
    assert torch.equal(once, twice) or (name == "int8" and (once - twice).abs().max() <= _bound(name, once).max())


@EACH
def test_zeros_stay_zeros(name: str) -> None:
    assert torch.equal(_round_trip(name, torch.zeros(3, 4)), torch.zeros(3, 4))


def test_each_output_channel_has_its_own_scale() -> None:
    tensor = torch.tensor([[1e-6, -1e-6], [1.0, 0.5], [0.0, 0.0]])
    back = _round_trip("int8", tensor)
    assert torch.allclose(back[0], tensor[0], rtol=0.01)
    assert torch.allclose(back[1], tensor[1], rtol=0.01)
    kernel = torch.randn(6, 2, 3, 3)
    assert layout({"k": kernel, "b": torch.zeros(6)}, CODECS["int8"]) == {
        "k": ((6, 2 + 18), "uint8"), "b": ((1, 2 + 6), "uint8"),
    }  # fmt: skip


def test_float16_clamps_to_its_range() -> None:
    assert _round_trip("float16", torch.tensor([1e9, -1e9])).tolist() == [65504, -65504]


def test_a_scale_that_is_not_finite_gives_values_that_are_not_finite() -> None:
    """The server then rejects them, as it does in float32."""
    array = CODECS["int8"].encode(torch.ones(2, 3))
    for bits in (0x7FC0, 0x7F80, 0xFF80):
        array[1, :2] = np.array([bits], "<u2").view(np.uint8)
        assert not torch.isfinite(CODECS["int8"].decode(array, (2, 3))[1]).any()


@EACH
def test_other_dtypes_than_float32_travel_unchanged(name: str) -> None:
    like = {"n": torch.tensor(3), "half": torch.zeros(2, dtype=torch.float64), "flag": torch.tensor([True])}
    assert layout(like, CODECS[name]) == layout(like, None)
    assert nbytes(layout(like, None)) == 8 + 16 + 1


def test_a_study_may_name_every_codec() -> None:
    assert get_args(get_type_hints(FederationSpec)["compression"]) == COMPRESSIONS


@EACH
def test_a_large_matrix_has_a_small_relative_error(name: str) -> None:
    tensor = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 1e-3
    lost = torch.linalg.vector_norm(_round_trip(name, tensor) - tensor) / torch.linalg.vector_norm(tensor)
    assert lost < {"bfloat16": 2e-3, "float16": 3e-4, "int8": 1e-2}[name]
    assert not math.isclose(float(lost), 0)
