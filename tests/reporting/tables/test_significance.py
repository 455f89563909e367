"""Wilcoxon's test and Holm's correction, against all orders of signs counted one by one."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.methods import METHODS, centralised_counterpart, make_method
from fedfms.reporting.tables.runs import read_runs
from fedfms.reporting.tables.sheets import significance_sheets
from fedfms.reporting.tables.significance import POOLED, PairedTest, holm, paired_tests, signed_rank
from fedfms.reporting.tables.summary import Block, make_blocks
from tests.reporting.tables.make import SITES, fill, image_scores, put, result

EMPTY = PairedTest(("fedmsa", ""), ("msa", ""), "standard", "a")


def ranks(values: list[float]) -> list[float]:
    """Mean ranks of the absolute values."""
    sizes = sorted(abs(value) for value in values)
    return [sizes.index(abs(v)) + (sizes.count(abs(v)) + 1) / 2 for v in values]


def exact(values: list[float]) -> float:
    """Two-sided p of the sum of ranks of positive differences, over all 2^n orders of signs."""
    rank = ranks(values)
    observed = sum(r for r, value in zip(rank, values, strict=True) if value > 0)
    sums = [sum(itertools.compress(rank, signs)) for signs in itertools.product((0, 1), repeat=len(rank))]
    low, high = (sum(s <= observed for s in sums), sum(s >= observed for s in sums))
    return min(1.0, 2 * min(low, high) / len(sums))


def normal(values: list[float]) -> float:
    """The approximation, with the variance corrected for ties."""
    rank, n = ranks(values), len(values)
    observed = sum(r for r, value in zip(rank, values, strict=True) if value > 0)
    ties = [sum(abs(v) == size for v in values) for size in {abs(v) for v in values}]
    variance = n * (n + 1) * (2 * n + 1) / 24 - sum(t**3 - t for t in ties) / 48
    return math.erfc(abs(observed - n * (n + 1) / 4) / math.sqrt(2 * variance))


@given(st.lists(st.integers(-99, 99).filter(bool), min_size=6, max_size=10, unique_by=abs))
@settings(max_examples=30, deadline=None)
def test_exact_against_all_orders_of_signs(values: list[float]) -> None:
    test = signed_rank(EMPTY, values)
    assert test.p == pytest.approx(exact(values), abs=1e-12)
    assert (test.how, test.images, test.differing) == ("exact", len(values), len(values))


@given(st.lists(st.integers(-5, 5), min_size=30, max_size=60).filter(lambda v: sum(map(bool, v)) >= 6))
@settings(max_examples=30, deadline=None)
def test_ties_and_zeros_against_the_formula(values: list[float]) -> None:
    differing = [value for value in values if value]
    test = signed_rank(EMPTY, values)
    assert (test.images, test.differing) == (len(values), len(differing))
    if len({abs(value) for value in differing}) < len(differing):
        assert test.how == "approximate"
        assert test.p == pytest.approx(normal(differing), abs=1e-9)


def test_many_differences_are_approximated() -> None:
    values = [(-1) ** i * float(i + 1) + 0.25 for i in range(51)]
    assert signed_rank(EMPTY, values).how == "approximate"
    assert signed_rank(EMPTY, values).p == pytest.approx(normal(values))
    assert signed_rank(EMPTY, values[:50]).how == "exact"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "0 images scored by both, the test needs 6"),
        ([0.1] * 5, "5 images scored by both, the test needs 6"),
        ([0.0] * 10, "0 differences, the test needs 6"),
        ([0.1, 0.2, 0.3, 0.4, 0.5, *[0.0] * 9], "5 differences, the test needs 6"),
    ],
)
def test_too_few_differences_give_a_reason_instead_of_a_p_value(values: list[float], reason: str) -> None:
    test = signed_rank(EMPTY, values)
    assert (test.p, test.holm, test.reason) == (None, None, reason)


def test_holm_by_hand() -> None:
    def tests(*values: float | None) -> list[PairedTest]:
        return [PairedTest(("m", str(i)), ("t", ""), "standard", "a", p=p, holm=p) for i, p in enumerate(values)]

    # Sorted 0.01, 0.02, 0.03, 0.9: times 4, 3, 2, 1, and never falling; the one without a test is not counted.
    corrected = holm(tests(0.03, 0.01, None, 0.9, 0.02))
    assert [test.holm for test in corrected] == [pytest.approx(0.06), 0.04, None, 0.9, 0.06]
    assert [test.holm for test in holm(tests(0.6, 0.7))] == [1.0, 1.0]


def block_of(out: Path) -> Block:
    (block,) = make_blocks(read_runs(out)[0])
    return block


def test_federated_against_centralised_by_hand(tmp_path: Path) -> None:
    """1..6 hundredths above, 7 below, one equal: of 128 orders of signs 19 have a sum of at most 7 below."""
    tests = paired_tests(block_of(fill(tmp_path)))
    assert {test.line for test in tests} == {("fedmsa", "")}  # no `unet` among the runs
    assert [test.site for test in tests] == [*SITES, POOLED] * 2
    first = tests[0]
    assert (first.images, first.differing, first.how) == (8, 7, "exact")
    assert first.p == pytest.approx(2 * 19 / 128)
    assert first.difference == pytest.approx(0.14 / 8)
    pooled = tests[3]
    # Each size three times: ranks 2, 5, ..., 20; z = (60 - 115.5) / sqrt(827.75 - 7 * 24 / 48).
    assert (pooled.images, pooled.differing, pooled.how) == (24, 21, "approximate")
    assert pooled.p == pytest.approx(math.erfc(55.5 / math.sqrt(2 * 824.25)))


def test_an_image_is_the_unit_and_seeds_are_averaged_over(tmp_path: Path) -> None:
    """Seed 0: 1..8 hundredths above; seed 1: as much below. Over both, no image differs."""
    steps = range(1, 9)
    for seed, sign in ((0, 1), (1, -1)):
        put(tmp_path, result("fedmsa", seed, "HK"), {"HK": image_scores([0.5 + sign * 0.01 * s for s in steps])})
        put(tmp_path, result("msa", seed, "HK"), {"HK": image_scores([0.5] * 8)})
    test = paired_tests(block_of(tmp_path))[0]
    assert (test.images, test.differing, test.reason) == (8, 0, "0 differences, the test needs 6")


def test_a_seed_or_image_that_one_method_lacks_counts_for_neither(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"), {"HK": image_scores([0.6, 0.7, 0.8, 0.61, 0.72, 0.83, None, 0.9])})
    put(tmp_path, result("fedmsa", 1, "HK"), {"HK": image_scores([0.0] * 8)})  # the counterpart has no seed 1
    put(tmp_path, result("msa", 0, "HK"), {"HK": image_scores([0.5] * 7 + [None])})
    test = paired_tests(block_of(tmp_path))[0]
    assert (test.images, test.differing) == (6, 6)
    assert test.difference == pytest.approx((0.1 + 0.2 + 0.3 + 0.11 + 0.22 + 0.33) / 6)
    assert test.p == pytest.approx(2 / 64)


def test_without_image_scores_the_sheet_shows_the_reason(tmp_path: Path) -> None:
    for method in ("fedmsa", "msa"):
        put(tmp_path, result(method, 0, "HK"))
    sheet = significance_sheets(paired_tests(block_of(tmp_path)))[0]
    assert sheet.rows[0][-1].text == "no test: 0 images scored by both, the test needs 6"


def test_a_counterpart_needs_the_same_backbone(tmp_path: Path) -> None:
    large = {"backbone": "vit_l", "checkpoint": "large.pth"}
    images = {"HK": image_scores([0.5] * 8)}
    put(tmp_path, result("fedmsa", 0, "HK", "backbone=vit_l", model=large), images)
    put(tmp_path, result("msa", 0, "HK"), images)
    assert paired_tests(block_of(tmp_path)) == []
    put(tmp_path, result("msa", 0, "HK", "backbone=vit_l", model=large), images)
    assert {(test.line, test.counterpart) for test in paired_tests(block_of(tmp_path))} == {
        (("fedmsa", "backbone=vit_l"), ("msa", "backbone=vit_l"))
    }


def test_every_method_names_its_counterpart() -> None:
    counterparts = {name: centralised_counterpart(make_method(name, {})) for name in METHODS}
    assert {name for name, other in counterparts.items() if other is None} == {"fednnunet", "msa", "sam", "unet"}
    assert (counterparts["fedsam"], counterparts["fedunet"]) == ("sam", "unet")
    assert all(other == "msa" for name, other in counterparts.items() if other and name not in ("fedsam", "fedunet"))
    assert centralised_counterpart(make_method("fedprox", {"full": True})) == "sam"
