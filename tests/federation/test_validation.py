"""Validation before aggregation: every difference from the schema is rejected, everything that fits is accepted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfms.federation.update_schema import Schema
from fedfms.federation.validation import check_dice, check_names, check_samples, check_tensors

MODEL = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((4,), np.float32)}
SCHEMA = Schema.of(MODEL)


def _rejected(arrays: dict[str, object]) -> str | None:
    return check_names(arrays, SCHEMA) or check_tensors(arrays, SCHEMA)


@given(
    hnp.arrays(np.float32, (2, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    hnp.arrays(np.float32, (4,), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
)
def test_every_update_that_fits_is_accepted(a: np.ndarray, b: np.ndarray) -> None:
    assert _rejected({"b": b, "a": a}) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"a": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"b": np.array([1, 2, 3, np.inf], np.float32)}, "not finite"),
        ({"a": np.zeros((1, 3), np.float32)}, r"not float32 \(2, 3\)"),  # would broadcast
        ({"a": np.zeros((3, 2), np.float32)}, "not float32"),
        ({"a": np.zeros((2, 3), np.float64)}, "float64"),
        ({"a": np.zeros((2, 3), object)}, "object"),
        ({"a": [[0.0] * 3] * 2}, "not an array"),
        ({"c": np.zeros(1, np.float32)}, "not part of the study"),
    ],
)
def test_what_differs_is_rejected(change: dict[str, object], expected: str) -> None:
    import re

    reason = _rejected({**MODEL, **change})
    assert reason is not None
    assert re.search(expected, reason)


def test_a_missing_tensor_is_rejected() -> None:
    assert _rejected({"a": MODEL["a"]}) == "1 tensors are missing, the first is b"


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)))
def test_any_other_shape_is_rejected(array: np.ndarray) -> None:
    if array.shape != (4,):
        assert _rejected({**MODEL, "b": array}) is not None


@pytest.mark.parametrize("samples", [0, -1, 1.5, float("nan"), float("inf"), None, "7", True, 10**8, 10**400])
def test_sample_counts_that_are_rejected(samples: object) -> None:
    assert check_samples(samples) is not None


@pytest.mark.parametrize("samples", [1, 400.0, np.int64(12)])
def test_sample_counts_that_are_accepted(samples: object) -> None:
    assert check_samples(samples) is None


@pytest.mark.parametrize("dice", [None, 0.0, 1, np.float32(0.5)])
def test_a_score_in_range_is_accepted(dice: object) -> None:
    assert check_dice(dice) is None


@pytest.mark.parametrize("dice", [1.5, -0.1, 1e9, float("nan"), "1", True])
def test_a_score_out_of_range_is_rejected(dice: object) -> None:
    assert check_dice(dice) is not None
