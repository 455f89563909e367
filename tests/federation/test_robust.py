"""Robust rules: against NumPy, in any order of arrival, and bounded for any f Byzantine updates."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfms.compression import in_memory
from fedfms.errors import StudyError, UpdateError
from fedfms.federation import elementwise
from fedfms.federation.robust import RULES, RoundUpdates, apply_rule
from fedfms.methods import METHODS, ServerState, Tensors, Update, make_method, resolve_study
from fedfms.methods.fedavg import weighted_mean
from fedfms.study import AGGREGATION_RULES, FederationSpec, Study, too_few_updates

ROBUST = sorted(set(RULES) - {"mean"})
VALUES = st.floats(-1e3, 1e3, width=32)
HUGE = st.floats(-(2.0**100), 2.0**100, width=32)
FEW = settings(max_examples=40, deadline=None)
FIVE = hnp.arrays(np.float32, (5, 7), elements=VALUES)
ZERO: Tensors = {"w": torch.zeros(7)}


def _updates(rows: np.ndarray) -> list[Update]:
    """One site per row, with one sample each."""
    return [Update(f"site-{index}", {"w": torch.from_numpy(row.copy())}, 1) for index, row in enumerate(rows)]


def _aggregated(rule: str, updates: list[Update], byzantine: int = 1) -> np.ndarray:
    sent = {update.site: ZERO for update in updates}
    made = apply_rule(rule, byzantine, RoundUpdates(tuple(updates), sent, in_memory))
    return weighted_mean(made.updates)["w"].numpy()


def _krum(rows: np.ndarray, byzantine: int, several: bool) -> np.ndarray:
    """Section 4 of the paper, one update after another."""
    rows = rows.astype(np.float64)
    near = len(rows) - byzantine - 2
    scores = []
    for i, own in enumerate(rows):
        apart = sorted(float(((own - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        scores.append(sum(apart[:near]))
    best = sorted(range(len(rows)), key=lambda index: (scores[index], index))
    return rows[best[: near if several else 1]].mean(axis=0)


def _clip(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    by = np.minimum(1, np.median(norms) / np.where(norms > 0, norms, 1))
    return (rows * by[:, None]).mean(axis=0)


ORACLES = {
    "median": lambda rows: np.median(rows.astype(np.float64), axis=0),
    "trimmed_mean": lambda rows: np.sort(rows.astype(np.float64), axis=0)[1:-1].mean(axis=0),
    "norm_clip": _clip,
}


@pytest.mark.parametrize("rule", sorted(ORACLES))
@FEW
@given(rows=FIVE)
def test_a_rule_equals_its_papers_formula(rule: str, rows: np.ndarray) -> None:
    assert np.allclose(_aggregated(rule, _updates(rows)), ORACLES[rule](rows), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rule", "several"), [("krum", False), ("multi_krum", True)])
@pytest.mark.parametrize(("sites", "byzantine"), [(5, 1), (7, 2), (8, 2)])
def test_krum_equals_its_papers_formula(rule: str, several: bool, sites: int, byzantine: int) -> None:
    for seed in range(20):
        rows = np.random.default_rng(seed).standard_normal((sites, 7)).astype(np.float32)
        assert np.allclose(_aggregated(rule, _updates(rows), byzantine), _krum(rows, byzantine, several), atol=1e-6)


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    rows = np.array([[1.0] * 7, [2.0] * 7, [4.0] * 7, [100.0] * 7], np.float32)
    assert np.array_equal(_aggregated("median", _updates(rows)), np.full(7, 3.0, np.float32))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_order_of_arrival_changes_no_bit(rule: str) -> None:
    updates = _updates(np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32))
    results = {_aggregated(rule, list(order)).tobytes() for order in itertools.permutations(updates)}
    assert len(results) == 1


@pytest.mark.parametrize("rule", ROBUST)
@FEW
@given(rows=FIVE, bad=hnp.arrays(np.float32, 7, elements=HUGE), at=st.integers(0, 4))
def test_one_arbitrary_update_of_five_does_not_move_a_rule_beyond_the_others(
    rule: str, rows: np.ndarray, bad: np.ndarray, at: int
) -> None:
    honest = np.delete(rows, at, axis=0)
    rows = rows.copy()
    rows[at] = bad
    made = _aggregated(rule, _updates(rows)).astype(np.float64)
    slack = 1e-3 + 1e-5 * np.abs(honest).max()
    if rule in ("median", "trimmed_mean"):  # element by element between the smallest and the largest honest one
        assert (made >= honest.min(axis=0) - slack).all()
        assert (made <= honest.max(axis=0) + slack).all()
    elif rule == "norm_clip":
        assert np.linalg.norm(made) <= np.linalg.norm(honest, axis=1).max() + slack
    else:  # the chosen update is no farther from an honest one than honest ones are from each other
        widest = max(np.linalg.norm(one - other) for one in honest.astype(np.float64) for other in honest)
        nearest = min(np.linalg.norm(made - one) for one in honest.astype(np.float64))
        assert nearest <= 2 * widest + slack


def test_one_arbitrary_update_moves_the_mean_arbitrarily_far() -> None:
    rows = np.zeros((5, 7), np.float32)
    rows[2] = 1e30
    assert _aggregated("mean", _updates(rows)).min() > 1e29


@pytest.mark.parametrize("rule", sorted(RULES))
def test_dtypes_shapes_and_whole_numbers_are_preserved(rule: str) -> None:
    updates = [
        Update(site, {"half": torch.full((2, 3), index, dtype=torch.float16), "steps": torch.tensor(index),
                      "none": torch.zeros(0, 4)}, 1)
        for index, site in enumerate("abcde")
    ]  # fmt: skip
    sent = {site: {"half": torch.zeros(2, 3, dtype=torch.float16), "steps": torch.tensor(0), "none": torch.zeros(0, 4)}
            for site in "abcde"}  # fmt: skip
    made = weighted_mean(apply_rule(rule, 1, RoundUpdates(tuple(updates), sent, in_memory)).updates)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in made.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in updates[0].tensors.items()
    }


def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = _updates(np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32))
    whole = {rule: _aggregated(rule, updates).tobytes() for rule in ("median", "trimmed_mean", "krum", "multi_krum")}
    monkeypatch.setattr(elementwise, "_ELEMENTS", 10)  # two elements of each at a time
    assert {rule: _aggregated(rule, updates).tobytes() for rule in whole} == whole


@pytest.mark.parametrize(
    ("rule", "sites", "says"),
    [
        ("median", 2, "median needs n >= 2f+1 = 3 updates a round for f = 1 Byzantine sites, and there are 2"),
        ("trimmed_mean", 2, "trimmed_mean needs n >= 2f+1 = 3"),
        ("norm_clip", 2, "norm_clip needs n >= 2f+1 = 3"),
        ("krum", 4, "krum needs n >= 2f+3 = 5"),
        ("multi_krum", 4, "multi_krum needs n >= 2f+3 = 5"),
    ],
)
def test_a_rule_is_rejected_for_fewer_sites_than_its_theory_needs(rule: str, sites: int, says: str) -> None:
    names = tuple(f"site-{index}" for index in range(sites))
    with pytest.raises(StudyError) as caught:
        Study(name="s", sites=names, federation=FederationSpec(aggregation=rule))
    assert says in caught.value.line()
    with pytest.raises(StudyError, match="n >= 2f"):  # a round may have as few as min_sites
        Study(name="s", sites=tuple("abcdefgh"), federation=FederationSpec(aggregation=rule, min_sites=sites))
    with pytest.raises(UpdateError, match="n >= 2f"):
        _aggregated(rule, _updates(np.zeros((sites, 7), np.float32)))
    Study(name="s", sites=(*names, "one-more"), federation=FederationSpec(aggregation=rule))


def test_the_formula_grows_with_f() -> None:
    assert too_few_updates("median", 2, 5) is None
    assert too_few_updates("krum", 2, 6)
    assert AGGREGATION_RULES.keys() == RULES.keys()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_only_a_method_that_averages_supports_another_rule(method: str) -> None:
    made = make_method(method, {})
    study = Study(name="s", method=method, sites=tuple("abcde"), federation=FederationSpec(aggregation="median"))
    if made.centralised:
        assert resolve_study(study, made).federation.aggregation == "mean"
    elif made.aggregates_by_mean:
        assert resolve_study(study, made).federation.aggregation == "median"
    else:
        with pytest.raises(StudyError, match=f"method {method}: it does not aggregate by a weighted mean.*median"):
            resolve_study(study, made)


@pytest.mark.parametrize("method", sorted(name for name in METHODS if METHODS[name].aggregates_by_mean))
def test_a_method_that_claims_to_average_does(method: str) -> None:
    """A second round shows a method whose server state, too, depends on more than the mean."""
    made, several, single = make_method(method, {}), ServerState(ZERO), ServerState(ZERO)
    for _ in range(2):
        updates: Any = [Update(site, {"w": torch.randn(7)}, 3 + index) for index, site in enumerate("abc")]
        several = made.aggregate(updates, several)
        single = made.aggregate([Update("", weighted_mean(updates), 1)], single)
        assert torch.equal(several.shared["w"], single.shared["w"])
        assert not several.per_site
