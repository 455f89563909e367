"""The gate: no message that differs from what was agreed gets in, every one that fits does; lengths and shares."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfms.errors import UpdateError
from fedfms.federation.gate import DIFFERENCES, Expected, Guard, capped
from fedfms.federation.rows import line_of
from fedfms.federation.validation import Schema

from .make import AGREED, EXPECTED, MODEL, aggregate, filled, message, take, value

FEW = settings(max_examples=60, deadline=None)
FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers())


@FEW
@given(hnp.arrays(np.float32, (2, 3), elements=FINITE), hnp.arrays(np.float32, (4,), elements=FINITE),
       st.integers(1, 10_000_000), st.none() | st.floats(0, 1))  # fmt: skip
def test_every_update_that_fits_gets_in(a: np.ndarray, b: np.ndarray, samples: int, dice: float | None) -> None:
    guard = Guard(1)
    assert take(guard, message("x", {"b": b, "a": a}, samples=samples, dice=dice)) is None
    assert "x" in guard
    assert guard.rows["x"] == {
        "round": 3, "site": "x", "accepted": True, "reason": "", "note": "", "held_out": False, "samples": samples,
        "bytes_up": 40, "scores": None, "train_loss": None, "seconds": None, "bytes_down": None,
        "unreadable_images": None,
    }  # fmt: skip


_DTYPES = hnp.scalar_dtypes() | hnp.byte_string_dtypes() | st.just(np.dtype(object))


@FEW
@given(st.sampled_from(sorted(MODEL)), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4), _DTYPES)
def test_no_other_shape_or_dtype_gets_in(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    assume((shape, dtype) != (MODEL[name].shape, np.dtype(np.float32)))
    refused(message(arrays={**MODEL, name: np.zeros(shape, dtype)}))


@FEW
@given(st.dictionaries(st.text(max_size=3) | st.sampled_from("ab"), st.just(MODEL["a"]), max_size=4))
def test_no_other_names_get_in(arrays: dict[str, np.ndarray]) -> None:
    arrays = {name: MODEL.get(name, array) for name, array in arrays.items()}
    assume(set(arrays) != set(MODEL))
    refused(message(arrays=arrays))


@FEW
@given(st.sampled_from(sorted(MODEL)), st.integers(0, 3), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_nothing_that_is_not_finite_gets_in(name: str, place: int, bad: float) -> None:
    array = MODEL[name].copy()
    array.flat[place] = bad
    refused(message(arrays={**MODEL, name: array}))


@FEW
@given(st.sampled_from(["names", "job", "rounds", "schema", "samples", "dice", "arrays"]), JUNK)
def test_no_junk_gets_in(place: str, junk: Any) -> None:
    assume(place != "samples" or isinstance(junk, bool) or not isinstance(junk, int | float) or not 1 <= junk <= 1e7)
    assume(place != "dice" or not (junk is None or (isinstance(junk, float | int) and 0 <= junk <= 1)))
    assume(place != "rounds" or type(junk) is bool or junk != 3)
    assume(place != "names" or junk != "a")
    deeper = {"names": ("a", junk), "rounds": (3, junk), "arrays": {**MODEL, "a": junk}}
    refused(message(**{place: deeper.get(place, junk)}))


def test_what_a_site_says_of_itself_is_one_line() -> None:
    reason = refused(message(arrays={**MODEL, "\n2026 - ERROR forged \x1b[2J": MODEL["a"]}))
    assert "\x1b" not in reason


@FEW
@given(JUNK | st.dictionaries(st.sampled_from(["scores", "seconds"]), JUNK | st.dictionaries(st.binary(), JUNK)))
def test_a_report_may_be_anything_and_is_written_all_the_same(report: Any) -> None:
    guard = Guard(1)
    assert take(guard, message(report=report)) is None
    assert json.loads(line_of(guard.rows["a"]))["accepted"]


def refused(sent: Any, guard: Guard | None = None, expected: Expected = EXPECTED) -> str:
    guard = guard or Guard(1)
    before = sent.sender in guard
    reason = take(guard, sent, expected)
    assert reason
    assert "\n" not in reason
    assert (sent.sender in guard) is before
    if not before:
        assert guard.rows[sent.sender]["reason"] == reason
        assert guard.told[sent.sender] == f"the update of round 3 was not used: {reason}"
    return reason


def test_a_masked_array_hides_nothing() -> None:
    hidden = np.ma.masked_array(np.full((2, 3), np.nan, np.float32), mask=True)
    assert refused(message(arrays={**MODEL, "a": hidden})) == "a is no array"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"a": MODEL["a"], "c": MODEL["b"]}, "the names of its model are not those that the job began with"),
        ({"a": MODEL["a"].T, "b": MODEL["b"]}, "the shapes of its model"),
        ({"a": MODEL["a"].astype(np.float16), "b": MODEL["b"]}, "the dtypes of its model"),
        ({"a": MODEL["a"][:1].astype(np.float64), "b": MODEL["b"]}, "the shapes and dtypes of its model"),
    ],
    ids=["names", "shapes", "dtypes", "both"],
)
def test_a_schema_that_differs_is_told_by_its_part(model: dict[str, np.ndarray], says: str) -> None:
    assert refused(message(schema=Schema.of(model).hash())).startswith(says)


def test_a_hash_does_not_hang_on_the_order_of_names() -> None:
    assert Schema.of({"b": MODEL["b"], "a": MODEL["a"]}).hash() == AGREED.hash()


def test_differences_and_weights_are_not_mixed() -> None:
    coded = Expected("job", 3, AGREED, AGREED, base="digest")
    assert refused(message(kind=DIFFERENCES)) == "it holds differences, not weights"
    assert refused(message(), expected=coded) == "it holds weights, not differences"
    assert "another model" in refused(message(kind=DIFFERENCES, base="other"), expected=coded)
    unsent = Expected("job", 3, AGREED, AGREED, base="")
    assert "another model" in refused(message(kind=DIFFERENCES, base=""), expected=unsent)
    assert take(Guard(1), message(kind=DIFFERENCES, base="digest"), coded) is None


def test_a_count_is_at_most_what_the_site_declared() -> None:
    guard = Guard(1)
    guard.declare("a", 10)
    guard.declare("a", 1000)  # the first word counts
    assert refused(message(samples=11), guard) == "it counts 11 samples, and the site declared 10"
    assert take(guard, message(samples=9)) is None
    guard.begin()
    assert take(guard, message(samples=10)) is None


def test_where_nothing_was_declared_the_first_answer_counts() -> None:
    guard = Guard(1)
    guard.declare("a", float("nan"))
    assert take(guard, message(samples=10)) is None
    guard.begin()
    assert "declared 10" in refused(message(samples=11), guard)


def test_a_refused_site_is_let_back_in_and_told_no_more() -> None:
    guard = Guard(1)
    refused(message(samples=0), guard)
    guard.begin()
    assert guard.told["a"]
    assert take(guard, message()) is None
    assert not guard.told


def test_a_second_update_changes_neither_the_first_nor_its_row() -> None:
    guard = Guard(1)
    assert take(guard, message(arrays=filled(1.0))) is None
    assert "second" in refused(message(arrays=filled(9.0)), guard)
    assert guard.rows["a"]["accepted"]
    assert not guard.told
    assert value(aggregate(guard, "a")) == 1.0


def _sent(guard: Guard, values: dict[str, float]) -> None:
    for site, each in values.items():
        assert take(guard, message(site, filled(each))) is None


def test_an_update_far_longer_than_the_others_is_refused() -> None:
    guard = Guard(2)
    _sent(guard, {"a": 1.0, "b": 2.0, "c": 1e6, "d": 3.0})
    assert value(aggregate(guard, "abcd")) == 2.0
    assert guard.rows["c"]["accepted"] is False
    reason = "it is 4e+05 times as long as the round's median update, and 10 times is the most"
    assert guard.rows["c"]["reason"] == reason
    assert guard.told["c"] == f"the update of round 3 was not used: {reason}"


def test_or_clipped_to_what_is_allowed() -> None:
    guard = Guard(2)
    _sent(guard, {"a": 1.0, "b": -1.0, "c": 1e6})
    assert value(aggregate(guard, "abc", norm_action="clip", norm_factor=3.0)) == pytest.approx(1.0)
    assert guard.rows["c"]["accepted"]
    assert guard.rows["c"]["note"] == "clipped: it was 1e+06 times as long as the round's median update"


@pytest.mark.parametrize("values", [{"a": 1.0, "b": 1e6}, {"a": 0.0, "b": 0.0, "c": 5.0}], ids=["two", "unmoved"])
def test_where_there_is_no_length_to_go_by_none_is_too_long(values: dict[str, float]) -> None:
    guard = Guard(1)
    _sent(guard, values)
    aggregate(guard, "abc")
    assert all(row["accepted"] for row in guard.rows.values())


def test_too_few_that_are_left_fail_the_round_with_each_reason() -> None:
    guard = Guard(3)
    _sent(guard, {"a": 1.0, "b": 1.0, "c": 1e6})
    with pytest.raises(UpdateError, match=r"round 3: 2 updates accepted, 3 needed \(c: it is 1e\+06 times as long"):
        aggregate(guard, "abc")


def test_a_share_is_lowered_to_the_cap_and_noted() -> None:
    guard = Guard(1)
    assert take(guard, message("a", filled(1.0), samples=1000)) is None
    assert take(guard, message("b", filled(0.0), samples=50)) is None
    assert value(aggregate(guard, "ab", max_share=0.6)) == pytest.approx(0.6)
    assert guard.rows["a"]["note"] == "counts for 75 of its 1000 samples: 0.6 of all at most"
    assert guard.rows["a"]["samples"] == 1000
    assert not guard.rows["b"]["note"]


@FEW
@given(st.lists(st.integers(1, 10_000_000), min_size=1, max_size=20), st.floats(0.01, 1))
def test_no_share_is_above_the_cap_where_that_can_be(counts: list[int], most: float) -> None:
    lowered = capped(counts, most)
    assert all(1 <= new <= old for new, old in zip(lowered, counts, strict=True))
    if len(counts) * most < 1:
        assert len(set(lowered)) == 1
    else:
        assert max(lowered) <= most * sum(lowered) * (1 + 1e-9)
    if max(counts) <= most * sum(counts):
        assert lowered == counts
