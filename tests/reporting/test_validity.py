"""Validity of a run: by hand, and as an exit code."""

from pathlib import Path
from typing import Any

import pytest

from fedfms.cli import main
from fedfms.errors import StudyError
from fedfms.reporting import make_report
from fedfms.reporting.results import objections
from fedfms.study import Study

from .make import make_rows, make_run, make_study


def _study(**values: Any) -> Study:
    federation = {"required_sites": ["a", "b"], "min_sites": 1}
    raw = {"name": "x", "sites": ["a", "b", "c"], "train": {"rounds": 4}, "federation": federation}
    return Study.from_dict(raw | values)


def _objections(b: list[int], *, complete: bool = True, **values: Any) -> list[str]:
    """Of a run of four rounds: site a took part in all of them, b in these."""
    participation = {"a": {"rounds": [0, 1, 2, 3]}, "b": {"rounds": b}, "c": {"rounds": []}}
    return objections(_study(**values), 4, complete=complete, participation=participation)


def test_a_required_site_must_be_in_the_last_round_and_in_half_of_all() -> None:
    assert _objections([0, 1, 2, 3]) == _objections([1, 3]) == []
    assert _objections([3]) == ["required b took part in 1 of 4 rounds"]
    assert _objections([]) == ["required b took part in 0 of 4 rounds"]
    assert _objections([0, 1, 2]) == ["required b was not in the last round, 3"]


def test_a_site_that_is_not_required_may_miss_all() -> None:
    assert _objections([], federation={"min_sites": 1}) == []


def test_a_run_that_is_not_complete_is_not_valid() -> None:
    assert _objections([0, 1, 2, 3], complete=False) == ["there are no final scores"]
    found = objections(_study(federation={}), 3, complete=False, participation={})
    assert found == ["only 3 of 4 rounds are done"]


def test_pooled_sites_take_part_if_the_pool_does() -> None:
    pooled = {"pool": {"rounds": [0, 1, 2, 3]}, "a": {"rounds": []}, "b": {"rounds": []}}
    assert objections(_study(method="msa"), 4, complete=True, participation=pooled) == []


@pytest.mark.parametrize("required", [["d"], ["c"], ["a", "a"], ["../a"]])
def test_only_sites_that_train_can_be_required(required: list[str]) -> None:
    with pytest.raises(StudyError, match="required_sites|not a name"):
        Study.from_dict({
            "name": "x", "sites": ["a", "b"], "held_out": ["c"], "federation": {"required_sites": required}
        })  # fmt: skip


def test_a_study_without_named_sites_may_require_any_site_that_is_not_held_out() -> None:
    assert Study.from_dict({"name": "x", "federation": {"required_sites": ["d"]}}).federation.required_sites == ("d",)
    with pytest.raises(StudyError, match="which do not train"):
        Study.from_dict({"name": "x", "held_out": ["d"], "federation": {"required_sites": ["d"]}})


@pytest.mark.slow
def test_a_missing_required_site_is_on_the_first_line_and_gives_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = {"min_sites": 1, "required_sites": ["b"]}
    make_run(tmp_path / "without", study=make_study(federation=federation))
    assert main(["report", str(tmp_path / "without")]) == 1
    first = " ".join(capsys.readouterr().out.split())  # a terminal folds it
    assert first.startswith("NOT VALID: required b took part in 1 of 3 rounds; 1 of 2 sites in 3 of 3 rounds; in all")
    results = make_report(tmp_path / "without").results
    assert (results["valid"], results["complete"], results["required_sites"]) == (False, True, ["b"])
    make_run(tmp_path / "cut", rows=make_rows()[:6], finished=False)
    assert main(["report", str(tmp_path / "cut")]) == 1
    make_run(tmp_path / "whole")
    assert main(["report", str(tmp_path / "whole")]) == 0
    assert "valid: 1 of 2 sites in 3 of 3 rounds; in all of them: a" in " ".join(capsys.readouterr().out.split())
