"""Reports of interrupted runs, of damaged records, and of sites that report invalid values."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import StudyError
from fedfms.reporting import ReportError, make_report, render_text

from .make import make_models, make_row, make_rows, make_run, make_scores, make_study


def _without(raw: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name != key}


def _with_row(scores: dict[str, Any], mode: str, **values: Any) -> dict[str, Any]:
    scores[mode]["disc"] |= values
    return scores


def test_an_interrupted_run_says_so_and_shows_the_last_scores(tmp_path: Path) -> None:
    make_run(tmp_path, rows=make_rows()[:6], finished=False)
    report = make_report(tmp_path)
    assert report.results["complete"] is False
    assert report.results["rounds"] == {"planned": 3, "done": 2}
    assert list(report.results["models"]) == ["last"]
    assert report.results["models"]["last"]["round"] == 1  # what was received in round 1 is the result of one round
    assert report.results["models"]["last"]["sites"]["a"]["scores"]["standard"]["dice"] == 0.5
    assert report.results["curves"]["sites"]["a"]["dice"] == [0.125, 0.5, None]
    assert report.results["valid"] is False
    assert report.first_line.plain.startswith("NOT VALID: only 2 of 3 rounds are done; 1 of 2 sites in 2 of 3 rounds")
    assert "last model that the sites scored, 1 round\n" in report.paths[1].read_text()


def test_a_run_interrupted_before_its_first_round(tmp_path: Path) -> None:
    records = make_run(tmp_path, rows=[], finished=False)
    (records / "rounds.jsonl").unlink()
    report = make_report(tmp_path)
    assert report.results["rounds"] == {"planned": 3, "done": 0}
    assert report.first_line.plain.endswith("0 of 2 sites in 0 of 3 rounds; in all of them: no site; held out: c")
    assert report.tables == []


def test_a_round_with_too_few_updates_is_not_done(tmp_path: Path) -> None:
    make_run(tmp_path, study=make_study(federation={"min_sites": 2}), finished=False)
    assert make_report(tmp_path).results["rounds"]["done"] == 1  # rounds 1 and 2 had site a alone


@pytest.mark.parametrize("left", ['{"round": 3, "site": "a", "acc', '{"round": 3, "reason": "\xe9'])
def test_an_incomplete_last_line_is_skipped(left: str, tmp_path: Path) -> None:
    path = make_run(tmp_path) / "rounds.jsonl"
    with path.open("ab") as file:
        file.write(left.encode()[:-1])
    report = make_report(tmp_path)
    assert report.results["rounds"]["done"] == 3
    assert report.results["notes"] == ["the last line of rounds.jsonl is incomplete and was skipped"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json is not valid JSON"),
        ("run.json", "[]", "run.json must be a mapping"),
        ("run.json", '{"format": 2}', "run.json: its format is 2, not 1"),
        ("run.json", '{"format": 1, "study": {"name": "x"}}', "run.json: missing key 'versions'"),
        (
            "run.json",
            '{"format": 1, "study": {"name": "x"}, "versions": {}, "parameters": {"total": "many"}}',
            "run.json: parameters.total: expected float",
        ),
        (
            "run.json",
            '{"format": 1, "study": {}, "versions": {}, "parameters": {"total": 1, "trained": 1, "shared": 1}}',
            "run.json: missing key 'parameters.shared_mb'",
        ),
        ("rounds.jsonl", '{"round": 0,\n{"round": 1}\n', "rounds.jsonl, line 1: it is not valid JSON"),
        ("rounds.jsonl", '{"round": 0}\n', "rounds.jsonl, line 1: missing key 'site'"),
        ("rounds.jsonl", "12\n", "rounds.jsonl, line 1: expected mapping"),
        ("rounds.jsonl", '{"round": -1, "site": "a", "accepted": true}\n', "rounds.jsonl, line 1: round: it must be 0"),
        ("final.json", "", "final.json is not valid JSON"),
        ("final.json", "{}", "final.json: models: expected mapping"),
        ("final.json", '{"models": {"final": {"round": 1}}}', "final.json: missing key 'models.final.sites'"),
    ],
)
def test_damaged_records_are_an_error_of_one_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    records = make_run(tmp_path)
    (records / name).write_text(content)
    with pytest.raises(ReportError) as caught:
        make_report(tmp_path)
    assert caught.value.line().startswith(message)
    assert "\n" not in caught.value.line()
    assert not (records / "report").exists()


def test_a_study_of_another_version_is_an_error(tmp_path: Path) -> None:
    path = make_run(tmp_path) / "run.json"
    run = json.loads(path.read_text())
    run["study"]["unheard_of"] = 1
    path.write_text(json.dumps(run))
    with pytest.raises(StudyError, match="unknown key 'unheard_of'"):
        make_report(tmp_path)


@pytest.mark.parametrize(
    "scores",
    [
        "all well",
        {"standard": {}},
        _without(make_scores(0.5, 0.5), "fedfms"),
        _without(make_scores(0.5, 0.5), "images"),
        make_scores(float("nan"), 0.5),
        make_scores(1.5, 0.5),
        make_scores(0.5, 0.5) | {"images": "four"},
        _with_row(make_scores(0.5, 0.5), "standard", images=None),
        _with_row(make_scores(0.5, 0.5), "fedfms", dice_sd=-1.0),
        _with_row(make_scores(0.5, 0.5, volumes=2), "volume", dice="high"),
    ],
    ids=str,
)
def test_invalid_values_of_a_site_are_dropped_with_a_note(scores: Any, tmp_path: Path) -> None:
    rows, models = make_rows(), make_models()
    rows[1] |= {"scores": scores, "seconds": "long", "train_loss": float("inf"), "reason": None}
    models["final"]["sites"]["b"]["scores"] = scores
    make_run(tmp_path, rows=rows, models=models)
    report = make_report(tmp_path)
    assert report.results["before"]["sites"]["b"]["scores"] is None
    assert report.results["models"]["final"]["mean"]["standard"]["dice"] == 0.75  # of a alone
    assert report.results["curves"]["sites"]["b"]["train_loss"][1] is None
    assert report.results["seconds"]["b"] == 2.5
    assert [note.split(":")[0] for note in report.results["notes"]] == ["b, round 0"] * 3 + ["b, final model"]
    assert "Note: b, round 0: seconds is not a finite number" in report.paths[1].read_text()


@pytest.mark.slow
def test_names_and_reasons_do_not_break_the_table(tmp_path: Path) -> None:
    rows = [make_row(0, "x|y [/bold]", make_scores(0.5, 0.5)), make_row(0, "z", None, reason="[/no]\n| # <b>" * 100)]
    make_run(tmp_path, study=make_study(sites=[], held_out=[]), rows=rows, models={})
    report = make_report(tmp_path)
    assert "x|y [/bold]" in render_text(report)
    text = report.paths[1].read_text()
    assert r"| x\|y \[/bold\] | disc |" in text
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert len(report.first_line.plain) < 450


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no run below this folder"):
        make_report(tmp_path)
    with pytest.raises(ReportError, match="there is no such folder"):
        make_report(tmp_path / "none")


def test_the_error_of_a_run_that_never_started_gives_the_reason(tmp_path: Path) -> None:
    ended = tmp_path / "server" / "simulate_job" / "fedfms" / "ended.json"
    ended.parent.mkdir(parents=True)
    ended.write_text('{"reason": "this site names no checkpoint folder"}')
    with pytest.raises(ReportError, match="the run did not start: this site names no checkpoint folder"):
        make_report(tmp_path)


def test_several_runs_are_listed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name)
    with pytest.raises(ReportError, match="2 runs: one/server/simulate_job, two/server/simulate_job; name one"):
        make_report(tmp_path)
    assert make_report(tmp_path / "two").results["study"] == "eyes"


def test_a_report_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "ws")
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="the report cannot be written"):
        make_report(tmp_path / "ws", tmp_path / "file")
