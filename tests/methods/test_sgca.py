"""SGCA: the projection against cvxpy, W and the mixtures by hand, absent sites, the penalty, speed."""

import json
import math
import random
import time
from typing import Any

import cvxpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.errors import StudyError, UpdateError
from fedfms.methods import ServerState, Tensors, Update, make_method
from fedfms.methods.sgca import SGCA, mixing_weights, project_to_simplex
from fedfms.methods.similarity import KINDS, SCALES, pairwise_similarities, scale_by_mean
from fedfms.models import SegmentationModel

LOOSE_S = 4.0  # CPU time; the goal is 2 s, with slack for slow machines


def _update(site: str, values: list[float], samples: int) -> Update:
    return Update(site, {"w": torch.tensor(values[:1]), "v": torch.tensor([values[1:]])}, samples)


def _flat(tensors: Tensors) -> list[float]:
    return torch.cat([tensors["w"].flatten(), tensors["v"].flatten()]).tolist()


A, B, C = _update("a", [0.0, 0.0], 1), _update("b", [3.0, 4.0], 1), _update("c", [6.0, 8.0], 2)
START = ServerState(shared=A.tensors)


def _close(got: Any, expected: Any, tolerance: float = 1e-12) -> None:
    one, other = torch.as_tensor(got), torch.as_tensor(expected)
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance, check_dtype=False)


def _solved(d: list[float], m: list[float], alpha: float) -> Any:
    """A row of W from a quadratic programming solver applied to Eq. 7."""
    weights = cvxpy.Variable(len(m))
    cost = cvxpy.sum_squares(weights - m) - alpha * (weights @ d)
    problem = cvxpy.Problem(cvxpy.Minimize(cost), [weights >= 0, cvxpy.sum(weights) == 1])
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return weights.value


@pytest.mark.slow
def test_w_equals_a_solvers_result() -> None:
    draw = random.Random(5)
    for _ in range(200):
        count = draw.randint(2, 50)
        parts = [{"w": torch.tensor([draw.gauss(0, 1) for _ in range(6)])} for _ in range(count)]
        samples, alpha = [draw.randint(1, 500) for _ in range(count)], draw.choice([0.0, 0.01, 0.1, 1.0, 10.0])
        d = scale_by_mean(pairwise_similarities(parts, draw.choice(KINDS)))
        weights, row = mixing_weights(d, samples, alpha), draw.randrange(count)
        expected = _solved(d[row].tolist(), [n / sum(samples) for n in samples], alpha)
        _close(weights[row], expected, 1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(-1e3, 1e3))
def test_the_projection_is_on_the_simplex_and_invariant_to_shifts(values: list[float], shift: float) -> None:
    row = torch.tensor([values], dtype=torch.float64)
    point = project_to_simplex(row)
    assert (point >= 0).all()
    assert abs(point.sum() - 1) < 1e-9
    _close(project_to_simplex(row + shift), point, 1e-8)
    _close(project_to_simplex(point), point)


def test_the_projection_with_a_huge_value() -> None:
    assert project_to_simplex(torch.tensor([[1e30, 0.0, -1e30]])).tolist() == [[1.0, 0.0, 0.0]]


def test_similarities_by_hand() -> None:
    parts = [u.tensors for u in (A, B, C)]
    assert pairwise_similarities(parts, "l2").tolist() == [[0, -5, -10], [-5, 0, -5], [-10, -5, 0]]
    assert pairwise_similarities(parts, "l1").tolist() == [[0, -7, -14], [-7, 0, -7], [-14, -7, 0]]
    assert pairwise_similarities(parts, "inner").tolist() == [[0, 0, 0], [0, 25, 50], [0, 50, 100]]
    _close(
        pairwise_similarities(parts, "cosine"), [[0.0, 0, 0], [0, 1, 1], [0, 1, 1]]
    )  # a has norm 0; b and c are parallel
    # (5 + 10 + 5) x 2 / 6 = 20 / 3
    _close(scale_by_mean(pairwise_similarities(parts, "l2")), [[0, -0.75, -1.5], [-0.75, 0, -0.75], [-1.5, -0.75, 0]])


def test_chunks_make_no_difference() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 9000, generator=generator)
    parts = [{"x": row[:5000].view(50, 100), "y": row[5000:]} for row in rows]
    whole = rows.to(torch.float64)
    _close(
        pairwise_similarities(parts, "l2"),
        -torch.cdist(whole, whole, compute_mode="donot_use_mm_for_euclid_dist"),
        1e-9,
    )
    _close(pairwise_similarities(parts, "l1"), -torch.cdist(whole, whole, 1.0), 1e-8)
    _close(pairwise_similarities(parts, "inner"), whole @ whole.T, 1e-8)
    _close(
        pairwise_similarities(parts, "cosine"), torch.corrcoef(torch.cat([whole, -whole], dim=1)), 1e-12
    )  # of mean 0


def test_a_difference_in_the_last_bit_is_measured() -> None:
    """A Gram matrix would lose this distance to rounding."""
    one = torch.ones(1000)
    parts = [{"w": one}, {"w": torch.nextafter(one, torch.tensor(2.0))}]
    _close(pairwise_similarities(parts, "l2")[0, 1] / -(math.sqrt(1000) * 2**-23), 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
def test_equal_sites_get_the_mean_and_one_site_gets_itself(kind: str, scale: str) -> None:
    method = SGCA(similarity=kind, scale=scale)
    equal = [Update(site, B.tensors, samples) for site, samples in (("a", 1), ("b", 3))]
    rows = method.aggregate(equal, START).notes["W"]["rows"]
    for site in "ab":
        _close([rows[site]["a"], rows[site]["b"]], [0.25, 0.75])
    alone = method.aggregate([B], START)
    assert alone.notes["W"]["rows"] == {"b": {"b": 1.0}}
    assert _flat(alone.per_site["b"]) == [3.0, 4.0]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_zeros_are_equal(kind: str) -> None:
    updates = [_update(site, [0.0, 0.0], 5) for site in "ab"]
    assert SGCA(similarity=kind).aggregate(updates, START).notes["W"]["rows"]["a"] == {"a": 0.5, "b": 0.5}


def test_three_sites_by_hand() -> None:
    after = SGCA().aggregate([C, A, B], START)
    # m = (1, 1, 2) / 4; d as scaled above; v_i = m + d_i / 2, minus a constant that makes the positive values sum to 1:
    # a: ( 0.25, -0.125, -0.25) + 0.375           = (0.625, 0.25, 0.125)
    # b: (-0.125, 0.25,  0.125) + 0.25            = (0.125, 0.5, 0.375)
    # c: (-0.5,  -0.125, 0.5)   + 0.3125 of two   = (0, 0.1875, 0.8125)
    assert after.notes["W"]["sites"] == ["a", "b", "c"]
    expected = {
        "a": {"a": 0.625, "b": 0.25, "c": 0.125}, "b": {"a": 0.125, "b": 0.5, "c": 0.375},
        "c": {"b": 0.1875, "c": 0.8125},
    }  # fmt: skip
    rows = after.notes["W"]["rows"]
    assert rows.keys() == expected.keys()
    for site, row in expected.items():
        assert rows[site] == pytest.approx(row, abs=1e-12)
    # a: 0.25 (3, 4) + 0.125 (6, 8); b: 0.5 (3, 4) + 0.375 (6, 8); c: 0.1875 (3, 4) + 0.8125 (6, 8)
    assert {site: _flat(tensors) for site, tensors in after.per_site.items()} == {
        "a": [1.5, 2.0], "b": [3.75, 5.0], "c": [5.4375, 7.25],
    }  # fmt: skip
    assert _flat(after.shared) == [3.75, 5.0]  # (0 + (3, 4) + 2 (6, 8)) / 4
    assert after.round == 1
    assert json.loads(json.dumps(after.notes, allow_nan=False)) == after.notes


def test_an_absent_site_keeps_its_row_and_a_new_one_gets_the_mean() -> None:
    method = SGCA()
    first = method.aggregate([A, B, C], START)
    second = method.aggregate([A, B], first)
    # m = (0.5, 0.5), d = -1: a: (0.5, 0) + 0.25. Of c's row (0, 0.1875, 0.8125) only b remains: all of b.
    rows = second.notes["W"]["rows"]
    assert (second.notes["W"]["sites"], rows) == (
        ["a", "b"], {"a": {"a": 0.75, "b": 0.25}, "b": {"a": 0.25, "b": 0.75}, "c": {"b": 1.0}},
    )  # fmt: skip
    assert _flat(second.per_site["c"]) == [3.0, 4.0]
    third = method.aggregate([A], second)
    # c's row has no weight on a: it gets the mean, like an unknown site; its solved row is stored unchanged.
    assert third.notes["W"]["rows"] == {"a": {"a": 1.0}, "b": {"a": 1.0}}
    sent = method.dispatch(third, ["b", "c", "new"])
    assert [_flat(sent[site]) for site in ("b", "c", "new")] == [[0.0, 0.0]] * 3
    assert sent["c"] is sent["new"] is third.shared
    assert third.state["W"]["c"] == first.state["W"]["c"] == first.notes["W"]["rows"]["c"]
    fourth = method.aggregate(
        [B, C], third
    )  # the absent a has weight on itself only: it gets the mean, not the row of round 0
    assert set(fourth.per_site) == {"b", "c"}


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 99)), min_size=1, max_size=6), st.randoms())
def test_the_order_of_arrival_does_not_matter(rows: list[tuple[float, int]], shuffled: random.Random) -> None:
    updates = [_update(f"site-{i}", [value, 1.0], samples) for i, (value, samples) in enumerate(rows)]
    other = list(updates)
    shuffled.shuffle(other)
    one, two = (SGCA().aggregate(order, START) for order in (updates, other))
    assert one.notes == two.notes
    assert list(one.per_site) == list(two.per_site)
    assert all(_flat(one.per_site[site]) == _flat(two.per_site[site]) for site in one.per_site)
    assert all(abs(sum(row.values()) - 1) < 1e-12 for row in one.notes["W"]["rows"].values())


def test_no_samples_is_an_error() -> None:
    for updates in ([], [_update("a", [0.0, 1.0], 0)]):
        with pytest.raises(UpdateError, match="no samples"):
            SGCA().aggregate(updates, START)


class _Two(torch.nn.Module):
    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.w, self.v = torch.nn.Parameter(torch.tensor(w)), torch.nn.Parameter(torch.ones(2))


def _penalty(own: list[float], received: list[float], beta: float = 0.5) -> tuple[float | None, torch.Tensor | None]:
    model: SegmentationModel = _Two(own)  # type: ignore[assignment]
    value = SGCA(beta=beta).penalty(model, {"w": torch.tensor(received)})
    if value is None:
        return None, None
    value.backward()
    assert model.v.grad is None  # private: not received
    return value.item(), model.w.grad  # type: ignore[union-attr,return-value]


def test_the_penalty_by_hand() -> None:
    value, gradient = _penalty([3.0, 4.0], [1.0, 0.0])
    # cos = 3 / 5. Its gradient by S is r / |S| - cos S / |S|^2 = (0.2 - 0.6 x 3 / 25, -0.6 x 4 / 25), times -0.5.
    assert value == pytest.approx(-0.3)
    _close(gradient, [-0.064, 0.048], 1e-7)
    value, gradient = _penalty([3.0, 4.0], [3.0, 4.0])
    assert value == pytest.approx(-0.5)
    _close(gradient, [0.0, 0.0], 1e-7)


@pytest.mark.parametrize(
    ("own", "received"), [([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0]), ([0.0, 0.0], [0.0, 0.0])]
)
def test_no_penalty_where_a_norm_is_0(own: list[float], received: list[float]) -> None:
    assert _penalty(own, received)[0] is None


def test_no_penalty_without_beta() -> None:
    assert _penalty([3.0, 4.0], [1.0, 0.0], beta=0.0)[0] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "method sgca: alpha is -1.0; it must be 0 or more"),
        ({"beta": math.nan}, "method sgca: beta is nan; it must be a finite number"),
        ({"similarity": "dot"}, "method sgca: similarity is 'dot'; one of 'l2', 'l1', 'cosine', 'inner'"),
        ({"scale": "max"}, "method sgca: scale is 'max'; one of 'mean', 'none'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        make_method("sgca", options)
    assert caught.value.line() == message


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_sites_take_seconds(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [{"w": torch.randn(600, 500, generator=generator)} for _ in range(100)]
    started = time.process_time()
    weights = mixing_weights(scale_by_mean(pairwise_similarities(parts, kind)), [10] * 100, alpha=1.0)
    assert time.process_time() - started < LOOSE_S
    _close(weights.sum(dim=1), torch.ones(100))
