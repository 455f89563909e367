"""The round server: it accepts every valid message and no other, and limits lengths and shares."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfms.errors import UpdateError
from fedfms.federation.messages import DIFFERENCES
from fedfms.federation.robust import capped
from fedfms.federation.rows import to_json
from fedfms.federation.server import RoundServer
from fedfms.federation.update_schema import Schema
from fedfms.federation.validation import rejection_reason

from .make import EXPECTED, MODEL, ROUND, SCHEMA, TENSORS, filled, message, round_server, value

FEW = settings(max_examples=60, deadline=None)
FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers())


@FEW
@given(hnp.arrays(np.float32, (2, 3), elements=FINITE), hnp.arrays(np.float32, (4,), elements=FINITE),
       st.integers(1, 10_000_000), st.none() | st.floats(0, 1))  # fmt: skip
def test_every_valid_update_is_accepted(a: np.ndarray, b: np.ndarray, samples: int, dice: float | None) -> None:
    server = round_server()
    assert server.accept(message("x", {"b": b, "a": a}, samples=samples, dice=dice)) is None
    assert server.rows["x"] == {
        "round": 3, "site": "x", "accepted": True, "reason": "", "note": "", "held_out": False, "samples": samples,
        "bytes_up": 40, "scores": None, "train_loss": None, "seconds": None, "bytes_down": None,
        "unreadable_images": None,
    }  # fmt: skip


_DTYPES = hnp.scalar_dtypes() | hnp.byte_string_dtypes() | st.just(np.dtype(object))


@FEW
@given(st.sampled_from(sorted(MODEL)), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4), _DTYPES)
def test_another_shape_or_dtype_is_rejected(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    assume((shape, dtype) != (MODEL[name].shape, np.dtype(np.float32)))
    rejected(message(arrays={**MODEL, name: np.zeros(shape, dtype)}))


@FEW
@given(st.dictionaries(st.text(max_size=3) | st.sampled_from("ab"), st.just(MODEL["a"]), max_size=4))
def test_other_names_are_rejected(arrays: dict[str, np.ndarray]) -> None:
    arrays = {name: MODEL.get(name, array) for name, array in arrays.items()}
    assume(set(arrays) != set(MODEL))
    rejected(message(arrays=arrays))


@FEW
@given(st.sampled_from(sorted(MODEL)), st.integers(0, 3), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_value_that_is_not_finite_is_rejected(name: str, place: int, bad: float) -> None:
    array = MODEL[name].copy()
    array.flat[place] = bad
    rejected(message(arrays={**MODEL, name: array}))


@FEW
@given(st.sampled_from(["names", "job", "rounds", "schema", "samples", "dice", "arrays"]), JUNK)
def test_junk_is_rejected(place: str, junk: Any) -> None:
    assume(place != "samples" or isinstance(junk, bool) or not isinstance(junk, int | float) or not 1 <= junk <= 1e7)
    assume(place != "dice" or not (junk is None or (isinstance(junk, float | int) and 0 <= junk <= 1)))
    assume(place != "rounds" or type(junk) is bool or junk != 3)
    assume(place != "names" or junk != "a")
    deeper = {"names": ("a", junk), "rounds": (3, junk), "arrays": {**MODEL, "a": junk}}
    rejected(message(**{place: deeper.get(place, junk)}))


def test_a_rejection_reason_is_one_line_without_control_characters() -> None:
    reason = rejected(message(arrays={**MODEL, "\n2026 - ERROR forged \x1b[2J": MODEL["a"]}))
    assert "\x1b" not in reason


@FEW
@given(JUNK | st.dictionaries(st.sampled_from(["scores", "seconds"]), JUNK | st.dictionaries(st.binary(), JUNK)))
def test_any_report_is_recorded(report: Any) -> None:
    server = round_server()
    assert server.accept(message(report=report)) is None
    assert json.loads(to_json(server.rows["a"]))["accepted"]


def rejected(sent: Any, server: RoundServer | None = None) -> str:
    server = server or round_server()
    before = server.rows.get(sent.sender, {}).get("accepted", False)
    reason = server.accept(sent)
    assert reason
    assert "\n" not in reason
    assert server.rows[sent.sender]["accepted"] is before
    if not before:
        assert server.rows[sent.sender]["reason"] == reason
        assert server.rejection(sent.sender) == f"the update of round 3 was rejected: {reason}"
    return reason


def test_a_masked_array_hides_nothing() -> None:
    hidden = np.ma.masked_array(np.full((2, 3), np.nan, np.float32), mask=True)
    assert rejected(message(arrays={**MODEL, "a": hidden})) == "a is not an array"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"a": MODEL["a"], "c": MODEL["b"]}, "the names of its model differ from those of the job's model"),
        ({"a": MODEL["a"].T, "b": MODEL["b"]}, "the shapes of its model"),
        ({"a": MODEL["a"].astype(np.float16), "b": MODEL["b"]}, "the dtypes of its model"),
        ({"a": MODEL["a"][:1].astype(np.float64), "b": MODEL["b"]}, "the shapes and dtypes of its model"),
    ],
    ids=["names", "shapes", "dtypes", "both"],
)
def test_the_reason_names_the_part_of_the_schema_that_differs(model: dict[str, np.ndarray], reason: str) -> None:
    assert rejected(message(schema=Schema.of(model).hash())).startswith(reason)


def test_a_hash_does_not_depend_on_the_order_of_names() -> None:
    assert Schema.of({"b": MODEL["b"], "a": MODEL["a"]}).hash() == SCHEMA.hash()


def test_differences_and_weights_are_not_mixed() -> None:
    differences = replace(EXPECTED, base="digest")
    assert rejected(message(kind=DIFFERENCES)) == "it holds differences, not weights"
    assert rejection_reason(message(), differences, None) == "it holds weights, not differences"
    assert "another model" in str(rejection_reason(message(kind=DIFFERENCES, base="other"), differences, None))
    unsent = replace(EXPECTED, base="")
    assert "another model" in str(rejection_reason(message(kind=DIFFERENCES, base=""), unsent, None))
    assert rejection_reason(message(kind=DIFFERENCES, base="digest"), differences, None) is None


def next_round(server: RoundServer) -> RoundServer:
    """The same server before round 3 again."""
    server.open_round()
    return server


def test_a_sample_count_is_limited_by_the_declared_one() -> None:
    server = round_server()
    server.declare("a", 10)
    server.declare("a", 1000)  # the first declaration counts
    assert rejected(message(samples=11), server) == "it counts 11 samples, and the site declared 10"
    assert server.accept(message(samples=9)) is None
    assert next_round(server).accept(message(samples=10)) is None


def test_without_a_declaration_the_first_sample_count_is_the_limit() -> None:
    server = round_server()
    server.declare("a", float("nan"))
    assert server.accept(message(samples=10)) is None
    assert "declared 10" in rejected(message(samples=11), next_round(server))


def test_a_rejected_site_may_answer_in_the_next_round() -> None:
    server = round_server()
    rejected(message(samples=0), server)
    next_round(server)
    assert server.rejection("a")
    assert server.accept(message()) is None
    assert not server.rejection("a")


def test_a_second_update_changes_neither_the_first_nor_its_row() -> None:
    server = round_server()
    assert server.accept(message(arrays=filled(1.0))) is None
    assert "second" in rejected(message(arrays=filled(9.0)), server)
    assert server.rows["a"]["accepted"]
    assert not server.rejection("a")
    assert value(server.close()) == 1.0


def test_a_failed_site_does_not_hide_its_accepted_update() -> None:
    server = round_server()
    assert server.accept(message()) is None
    server.reject("a", ROUND, "it failed")
    assert server.rows["a"]["accepted"]
    server.reject("b", ROUND - 1, "it failed in an earlier round")
    assert "b" not in server.rows


def test_a_message_is_late_once_the_round_is_closed() -> None:
    server = round_server()
    assert server.accept(message("a")) is None
    server.close()
    for late in (message("b"), message("b", round=ROUND + 1, rounds=(ROUND + 1, ROUND + 1))):
        assert server.accept(late) == "it arrived too late"
    server.open_round()
    assert server.accept(message("b")) == "it arrived too late"
    assert server.rows == {}
    assert server.accept(message("b", round=ROUND + 1, rounds=(ROUND + 1, ROUND + 1))) is None


def test_a_held_out_site_has_a_row_and_no_update() -> None:
    server = round_server()
    assert server.accept(message("h", report={"seconds": 1.0})) == "the site is held out"
    assert (server.rows["h"]["accepted"], server.rows["h"]["held_out"], server.rows["h"]["seconds"]) == (False, True, 1)
    assert server.dispatch("h") is None


def test_a_site_gets_the_current_round_only() -> None:
    server = round_server()
    sent = server.dispatch("a", ROUND)
    assert sent is not None and sent.content is sent.tensors
    assert all(tensor is TENSORS[name] for name, tensor in sent.tensors.items())
    assert server.dispatch("a", ROUND - 1) is None
    assert server.dispatch("newcomer", ROUND) is not None


def accept_all(server: RoundServer, values: dict[str, float]) -> None:
    for site, each in values.items():
        assert server.accept(message(site, filled(each))) is None


def test_an_update_far_longer_than_the_others_is_rejected() -> None:
    server = round_server(2)
    accept_all(server, {"a": 1.0, "b": 2.0, "c": 1e6, "d": 3.0})
    assert value(server.close()) == 2.0
    assert server.rows["c"]["accepted"] is False
    reason = "it is 4e+05 times as long as the round's median update, and the limit is 10 times"
    assert server.rows["c"]["reason"] == reason
    assert server.rejection("c") == f"the update of round 3 was rejected: {reason}"


def test_or_it_is_clipped_to_the_limit() -> None:
    server = round_server(2, norm_action="clip", norm_factor=3.0)
    accept_all(server, {"a": 1.0, "b": -1.0, "c": 1e6})
    assert value(server.close()) == pytest.approx(1.0)
    assert server.rows["c"]["accepted"]
    assert server.rows["c"]["note"] == "clipped: it is 1e+06 times as long as the round's median update"


@pytest.mark.parametrize("values", [{"a": 1.0, "b": 1e6}, {"a": 0.0, "b": 0.0, "c": 5.0}], ids=["two", "zero median"])
def test_without_a_median_length_no_update_is_too_long(values: dict[str, float]) -> None:
    server = round_server()
    accept_all(server, values)
    server.close()
    assert all(row["accepted"] for row in server.rows.values())


def test_a_round_with_too_few_updates_left_fails_with_each_reason() -> None:
    server = round_server(3)
    accept_all(server, {"a": 1.0, "b": 1.0, "c": 1e6})
    with pytest.raises(UpdateError, match=r"round 3: 2 updates accepted, 3 needed \(c: it is 1e\+06 times as long"):
        server.close()


def test_a_sample_share_is_lowered_to_the_limit_and_noted() -> None:
    server = round_server(max_share=0.6)
    assert server.accept(message("a", filled(1.0), samples=1000)) is None
    assert server.accept(message("b", filled(0.0), samples=50)) is None
    assert value(server.close()) == pytest.approx(0.6)
    assert server.rows["a"]["note"] == "counts for 75 of its 1000 samples: max_share is 0.6"
    assert server.rows["a"]["samples"] == 1000
    assert not server.rows["b"]["note"]


@FEW
@given(st.lists(st.integers(1, 10_000_000), min_size=1, max_size=20), st.floats(0.01, 1))
def test_no_share_exceeds_the_limit_where_that_is_possible(counts: list[int], limit: float) -> None:
    lowered = capped(counts, limit)
    assert all(1 <= new <= old for new, old in zip(lowered, counts, strict=True))
    if len(counts) * limit < 1:
        assert len(set(lowered)) == 1
    else:
        assert max(lowered) <= limit * sum(lowered) * (1 + 1e-9)
    if max(counts) <= limit * sum(counts):
        assert lowered == counts
