"""Means, deviations and averages of a table, against numbers computed by hand."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfms.reporting.tables.runs import Key, read_runs
from fedfms.reporting.tables.sheets import (
    BEST,
    SECOND,
    Sheet,
    caption,
    differing_settings,
    made_with,
    not_finished,
    score_sheet,
)  # fmt: skip
from fedfms.reporting.tables.summary import (
    Block,
    make_blocks,
    mean_of,
    over_seeds,
    parse_variant,
    score_table,
    site_order,
    variant_order,
)  # fmt: skip
from tests.reporting.tables.make import SITES, fill, put, result

ORDER = ("fedmsa", "fedsca", "fedunet", "msa")


def block_of(out: Path, *planned: Key) -> Block:
    """The one block of runs."""
    (block,) = make_blocks(read_runs(out)[0], planned, ORDER)
    return block


def texts(sheet: Sheet) -> list[list[str]]:
    """The texts of a sheet."""
    return [[cell.text for cell in row] for row in sheet.rows]


def test_held_out_by_hand(tmp_path: Path) -> None:
    block = block_of(fill(tmp_path))
    assert (block.sites, block.seeds) == (SITES, (0, 1))
    table = score_table(block, "final", "standard", "dice")
    assert list(table.scores) == [("fedmsa", ""), ("fedunet", ""), ("msa", "")]
    scores, average = table.scores["fedmsa", ""], table.averages["fedmsa", ""]
    # BIDMC: 0.80 and 0.84: mean 0.82, s.d. 0.04 / sqrt(2); HK and UCL a hundredth lower each.
    assert [score.mean for score in scores] == pytest.approx([0.82, 0.81, 0.80])
    assert [score.sd for score in scores] == pytest.approx([0.0282842712] * 3)
    assert (average.mean, average.sd) == pytest.approx((0.81, 0.0282842712))
    assert (average.seeds, scores[0].images) == (2, (8, 8))
    iou = score_table(block, "best", "fedfms", "iou").scores["fedmsa", ""]
    assert iou[0].mean == pytest.approx(0.9 * (0.82 - 0.02) / 2)
    assert (block.missing, not_finished(block)) == (0, "")


def test_the_score_is_that_of_the_held_out_site(tmp_path: Path) -> None:
    content = result("fedmsa", 0, "HK")
    for site in ("BIDMC", "UCL"):
        content["models"]["final"]["sites"][site]["scores"]["standard"]["prostate"]["dice"] = 0.111
    put(tmp_path, content)
    (scores,) = score_table(block_of(tmp_path), "final", "standard", "dice").scores.values()
    assert [score.mean for score in scores] == [0.81 - 0.02]


def test_missing_runs_are_counted_and_an_average_needs_all_sites_of_a_seed(tmp_path: Path) -> None:
    block = block_of(fill(tmp_path, without=[("msa", 1, "UCL"), ("fedunet", 0, "HK"), ("fedunet", 1, "HK")]))
    assert not_finished(block) == "not finished: 3 of 18 runs"
    table = score_table(block, "final", "standard", "dice")
    _, fedunet, msa = table.averages.values()
    assert fedunet.mean is None  # a mean over two of three sites would not be comparable
    assert (msa.mean, msa.sd, msa.seeds) == (pytest.approx(0.78), None, 1)
    rows = texts(score_sheet(block, table))
    assert rows[1] == ["fedunet", "0.520 ± 0.028", "-", "0.500 ± 0.028", "-", "2", "4 of 6"]
    assert rows[2] == ["msa", "0.810 ± 0.028", "0.800 ± 0.028", "0.770*", "0.780*", "2", "5 of 6"]
    assert "* over fewer of them" in caption(block, table)


def test_planned_runs_count_even_if_a_method_has_no_finished_run(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"))
    planned = [Key(method, 0, site) for method in ("fedsca", "fedmsa") for site in SITES]
    block = block_of(tmp_path, *planned)
    assert not_finished(block) == "not finished: 5 of 6 runs"
    rows = texts(score_sheet(block, score_table(block, "final", "standard", "dice")))
    assert rows == [
        ["fedmsa", "-", "0.790", "-", "0.790", "1", "1 of 3"], ["fedsca", "-", "-", "-", "-", "0", "0 of 3"],
    ]  # fmt: skip


def test_a_site_without_scores_is_excluded_from_every_average(tmp_path: Path) -> None:
    for method in ("fedmsa", "msa"):
        content = result(method, 0, None)
        content["models"]["final"]["sites"]["UCL"]["scores"] = None
        put(tmp_path, content)
    block = block_of(tmp_path)
    table = score_table(block, "final", "standard", "dice")
    assert [average.mean for average in table.averages.values()] == pytest.approx([0.795, 0.785])
    assert "The average excludes UCL, for which there is no score." in caption(block, table)


def test_personal_by_hand(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        put(tmp_path, result("fedsca", seed, None, structures=("disc", "cup"), dataset="fundus"))
    block = block_of(tmp_path)
    table = score_table(block, "final", "standard", "dice")
    (scores,), (average,) = table.scores.values(), table.averages.values()
    # Disc 0.70, 0.74, 0.78 at the first site, cup a tenth lower.
    assert [score.mean for score in scores] == pytest.approx([0.74, 0.64, 0.73, 0.63, 0.72, 0.62])
    assert scores[0].sd == pytest.approx(0.04)
    assert average.mean == pytest.approx(0.68)
    sheet = score_sheet(block, table)
    assert sheet.head[1:3] == ("BIDMC, disc", "BIDMC, cup")
    assert "over 3 seeds (0, 1, 2)" in sheet.caption


def test_best_and_second_compare_rounded_texts(tmp_path: Path) -> None:
    for method, value in (("fedmsa", 0.8004), ("fedsca", 0.8), ("fedunet", 0.7), ("msa", 0.6)):
        content = result(method, 0, "HK")
        content["models"]["final"]["sites"]["HK"]["scores"]["standard"]["prostate"]["dice"] = value
        put(tmp_path, content)
    block = block_of(tmp_path)
    sheet = score_sheet(block, score_table(block, "final", "standard", "dice"))
    assert [row[1].mark for row in sheet.rows] == [BEST, BEST, SECOND, ""]
    put(tmp_path / "one", result("fedmsa", 0, "HK"))
    alone = block_of(tmp_path / "one")
    assert [cell.mark for cell in score_sheet(alone, score_table(alone, "final", "standard", "dice")).rows[0]] == [
        ""
    ] * 5


def test_settings_that_differ_between_runs_are_noted(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"))
    put(tmp_path, result("fedsca", 0, "HK", "L=2", train={"rounds": 7}))
    assert differing_settings(block_of(tmp_path)) == []  # a variant differs on purpose
    put(tmp_path, result("msa", 0, "HK", train={"rounds": 5}))
    assert differing_settings(block_of(tmp_path)) == ["Not all runs have the same settings: train.rounds is 3 or 5."]


def test_each_study_and_protocol_has_its_own_tables(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"))
    put(tmp_path, result("fedmsa", 0, None))
    put(tmp_path, result("fedsca", 0, None, name="polyp", title="Polyps", dataset="polyp"))
    blocks = make_blocks(read_runs(tmp_path)[0])
    assert [(block.study.name, block.protocol, len(block.runs)) for block in blocks] == [
        ("polyp", "personal", 1), ("prostate", "held-out", 1), ("prostate", "personal", 1),
    ]  # fmt: skip


def test_machines_that_differ_are_all_listed(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"))
    put(tmp_path, result("fedmsa", 1, "HK"))
    put(tmp_path, result("fedmsa", 0, "UCL") | {"machine": {"cpu": "another", "cores": 2}})
    made = dict(made_with(read_runs(tmp_path)[0]))
    assert made == {"cpu": "a CPU (2 runs); another (1 run)", "cores": "2", "fedfms": "0.1.0", "torch": "2.13.0"}


@given(st.lists(st.text(min_size=1), min_size=3, max_size=7, unique=True))
def test_the_studys_order_of_sites_is_recovered(names: list[str]) -> None:
    lists = [[name for name in names if name != held_out] for held_out in names]
    assert site_order(set(names), lists) == names
    assert site_order(set(names), [names]) == names


def test_a_mean_needs_every_value() -> None:
    assert mean_of([0.25, 0.75], [1, 3]) == 0.625
    assert mean_of([0.25, None]) is None
    assert mean_of([]) is None
    assert over_seeds([None, 0.5]).sd is None


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", None), ("L=4", ("L", 4)), ("beta=1e-3", ("beta", 0.001)), (" beta = 0.5 ", ("beta", 0.5)),
        ("act=gelu", ("act", "gelu")), ("x=1_0", ("x", "1_0")), ("x=nan", ("x", "nan")), ("x=1e999", ("x", "1e999")),
        ("set=a=b", ("set", "a=b")), ("-PT", None), ("=4", None), ("L=", None), (" = ", None),
    ],
)  # fmt: skip
def test_variants(text: str, parsed: object) -> None:
    found = parse_variant(text)
    assert found == parsed
    assert found is None or type(found[1]) is type(parsed[1])  # type: ignore[index]


@given(
    st.text(alphabet="abcL_", min_size=1), st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
)
def test_any_number_is_read_back(name: str, value: float) -> None:
    assert parse_variant(f"{name}={value!r}") == (name, value)


def test_variants_are_in_the_order_of_their_numbers() -> None:
    assert sorted(["L=10", "", "L=2", "L=x", "beta=1"], key=variant_order) == ["", "L=2", "L=10", "L=x", "beta=1"]
