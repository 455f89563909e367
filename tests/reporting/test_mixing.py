"""The weights of each site's own mixture: read back, told in a sentence, drawn."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedfms.reporting import ReportError, make_report
from fedfms.reporting.mixing import mixing_line, mixing_png

from .make import make_run, make_study

FIRST = {"round": 0, "W": {"sites": ["a", "b"], "rows": {"a": {"a": 0.75, "b": 0.25}, "b": {"a": 0.5, "b": 0.5}}}}
LAST = {"round": 1, "W": {"sites": ["a"], "rows": {"a": {"a": 1.0}, "b": {"a": 1}}}}  # b did not answer
CLEAN = [{"round": entry["round"], **entry["W"]} for entry in (FIRST, LAST)]  # type: ignore[dict-item]


def _run(workspace: Path, *lines: Any, **more: Any) -> Path:
    folder = make_run(workspace, **more)
    (folder / "mixing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _areas(png: bytes) -> set[Any]:
    """The colours of a picture that fill more than letters and lines do."""
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.format, picture.width) == ("PNG", 1320)
        colours = picture.convert("RGB").getcolors(maxcolors=1_000_000) or []
        return {colour for pixels, colour in colours if pixels > 2000}


def _near(colour: tuple[int, int, int], colours: set[Any]) -> bool:
    return any(max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= 1 for other in colours)


def test_a_run_with_mixtures(tmp_path: Path) -> None:
    folder = _run(tmp_path, FIRST, LAST)
    report = make_report(tmp_path)
    assert report.results["mixing"] == CLEAN
    assert json.loads((folder / "report" / "results.json").read_text())["mixing"] == CLEAN
    assert [path.name for path in report.paths][-1] == "mixing.png"
    assert (folder / "report" / "mixing.png").read_bytes() == mixing_png(CLEAN)
    assert mixing_line(CLEAN) in (folder / "report" / "table.md").read_text()


def test_a_run_without_mixtures_has_no_picture_of_them(tmp_path: Path) -> None:
    for folder in (make_run(tmp_path / "none"), _run(tmp_path / "empty")):
        report = make_report(folder)
        assert report.results["mixing"] == []
        assert not (folder / "report" / "mixing.png").exists()
        assert "mixing" not in (folder / "report" / "table.md").read_text()


def test_the_sentence_by_hand() -> None:
    start = "The server made each site a mixture of its own: mixing.png shows the weights W of "
    itself = "; in the last, a site's weight on itself is from "
    assert mixing_line(CLEAN[:1]) == f"{start}round 0{itself}0.500 (b) to 0.750 (a)."
    assert mixing_line(CLEAN) == f"{start}rounds 0 to 1{itself}0.000 (b) to 1.000 (a)."
    assert mixing_line([{"round": 2, "sites": [], "rows": {}}]) == f"{start}round 2."


def test_the_picture_has_a_weights_colour_and_grey_where_none_was_decided() -> None:
    whole, absent = _areas(mixing_png(CLEAN[:1])), _areas(mixing_png(CLEAN))
    grey, half, all_of_it = (0xBB, 0xBB, 0xBB), (33, 145, 140), (253, 231, 36)  # viridis at 0.5 and 1
    assert _near(half, whole)
    assert not _near(grey, whole)
    assert _near(grey, absent)
    assert _near(all_of_it, absent)


@pytest.mark.parametrize(("sites", "rounds"), [(1, 1), (8, 100), (30, 3)])
def test_pictures_of_few_and_many_sites(sites: int, rounds: int) -> None:
    names = [f"_hospital ${index}$ x^" for index in range(sites)]
    row = dict.fromkeys(names, 1 / sites)
    _areas(mixing_png([{"round": r, "sites": names, "rows": dict.fromkeys(names, row)} for r in range(rounds)]))


def test_lines_in_any_order_and_a_round_that_was_run_again(tmp_path: Path) -> None:
    other = copy.deepcopy(FIRST)
    other["W"]["rows"]["a"] = {"a": 1.0}  # type: ignore[index]
    _run(tmp_path, LAST, other, FIRST)
    assert make_report(tmp_path).results["mixing"] == CLEAN


def test_sites_that_the_study_does_not_name_are_taken_where_it_names_none(tmp_path: Path) -> None:
    line = {"round": 0, "W": {"sites": ["x"], "rows": {"x": {"x": 1.0}}}}
    _run(tmp_path, line, study=make_study(sites=[], held_out=[]))
    assert make_report(tmp_path).results["mixing"][0]["sites"] == ["x"]


def test_an_unfinished_last_line_is_passed_over(tmp_path: Path) -> None:
    with (_run(tmp_path, FIRST) / "mixing.jsonl").open("a") as file:
        file.write('{"round": 1, "W": {"si')
    results = make_report(tmp_path).results
    assert results["mixing"] == CLEAN[:1]
    assert results["notes"] == ["the last line of mixing.jsonl is unfinished and left out"]


def _with(round_: Any = 0, **parts: Any) -> dict[str, Any]:
    return {"round": round_, "W": {**FIRST["W"], **parts}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "line",
    [
        12,
        {"round": 0},
        {"round": 0, "W": None},
        _with(round_=-1),
        _with(round_=True),
        _with(round_="0"),
        _with(sites=["a"]),  # b did not answer, and has weights
        _with(sites=["a", "b", "a"]),
        _with(sites=["a", "b", "c"]),  # held out
        _with(sites=["a", "b", 3]),
        _with(sites=["a", "b", ["a"]]),
        _with(rows=[]),
        _with(rows={"x": {"a": 1.0}}),
        _with(rows={"a": {}}),
        _with(rows={"a": {"a": 0.998}}),
        _with(rows={"a": {"a": 1.5, "b": -0.5}}),
        _with(rows={"a": {"a": float("nan"), "b": 0.5}}),
        _with(rows={"a": {"a": "1"}}),
        _with(rows={"a": {"a": True}}),
        _with(rows={"a": [1.0]}),
    ],
    ids=str,
)
def test_what_is_no_mixing_is_an_error_of_one_line(line: Any, tmp_path: Path) -> None:
    folder = _run(tmp_path, FIRST, line)
    with pytest.raises(ReportError) as caught:
        make_report(tmp_path)
    assert caught.value.line() == (
        "mixing.jsonl, line 2: it is no mixing of a round over the study's sites; "
        "the run's records are damaged; run the job again"
    )
    assert not (folder / "report").exists()
