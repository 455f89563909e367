"""The checks before aggregation: every difference from the schema is refused, everything that fits is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfms.federation.validation import Schema, check_dice, check_names, check_samples, check_tensors

MODEL = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((4,), np.float32)}
SCHEMA = Schema.of(MODEL)


def _refused(arrays: dict[str, object]) -> str | None:
    return check_names(arrays, SCHEMA) or check_tensors(arrays, SCHEMA)


@given(
    hnp.arrays(np.float32, (2, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    hnp.arrays(np.float32, (4,), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
)
def test_every_update_that_fits_is_taken(a: np.ndarray, b: np.ndarray) -> None:
    assert _refused({"b": b, "a": a}) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"b": np.array([1, 2, 3, np.inf], np.float32)}, "not finite"),
        ({"a": np.zeros((1, 3), np.float32)}, r"not float32 \(2, 3\)"),  # would broadcast
        ({"a": np.zeros((3, 2), np.float32)}, "not float32"),
        ({"a": np.zeros((2, 3), np.float64)}, "float64"),
        ({"a": np.zeros((2, 3), object)}, "object"),
        ({"a": [[0.0] * 3] * 2}, "no array"),
        ({"c": np.zeros(1, np.float32)}, "not of this study"),
    ],
)
def test_what_differs_is_refused(change: dict[str, object], says: str) -> None:
    import re

    reason = _refused({**MODEL, **change})
    assert reason is not None
    assert re.search(says, reason)


def test_a_missing_tensor_is_refused() -> None:
    assert _refused({"a": MODEL["a"]}) == "1 tensors are missing, the first is b"


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)))
def test_any_other_shape_is_refused(array: np.ndarray) -> None:
    if array.shape != (4,):
        assert _refused({**MODEL, "b": array}) is not None


@pytest.mark.parametrize("samples", [0, -1, 1.5, float("nan"), float("inf"), None, "7", True, 10**8, 10**400])
def test_sample_counts_that_are_refused(samples: object) -> None:
    assert check_samples(samples) is not None


@pytest.mark.parametrize("samples", [1, 400.0, np.int64(12)])
def test_sample_counts_that_are_taken(samples: object) -> None:
    assert check_samples(samples) is None


@pytest.mark.parametrize("dice", [None, 0.0, 1, np.float32(0.5)])
def test_a_score_in_range_is_taken(dice: object) -> None:
    assert check_dice(dice) is None


@pytest.mark.parametrize("dice", [1.5, -0.1, 1e9, float("nan"), "1", True])
def test_a_score_that_could_not_be_one_is_refused(dice: object) -> None:
    assert check_dice(dice) is not None
