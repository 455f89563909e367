"""Mixing weights of personal models: read back, summarised in a sentence, drawn."""

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
    """The colours of large areas of a picture; not of letters and lines."""
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
    start = "Each site received a personal mixture of the sites' tensors: mixing.png shows the weights W of "
    itself = "; in the last, a site's own weight ranges from "
    assert mixing_line(CLEAN[:1]) == f"{start}round 0{itself}0.500 (b) to 0.750 (a)."
    assert mixing_line(CLEAN) == f"{start}rounds 0 to 1{itself}0.000 (b) to 1.000 (a)."
    assert mixing_line([{"round": 2, "sites": [], "rows": {}}]) == f"{start}round 2."


def test_the_picture_shows_weights_as_colours_and_missing_ones_as_grey() -> None:
    whole, absent = _areas(mixing_png(CLEAN[:1])), _areas(mixing_png(CLEAN))
    grey, half, all_of_it = (0xBB, 0xBB, 0xBB), (33, 145, 140), (253, 231, 36)  # viridis at 0.5 and 1
    assert _near(half, whole)
    assert not _near(grey, whole)
    assert _near(grey, absent)
    assert _near(all_of_it, absent)


@pytest.mark.slow
@pytest.mark.parametrize(("sites", "rounds"), [(1, 1), (8, 100), (30, 3)])
def test_pictures_of_few_and_many_sites(sites: int, rounds: int) -> None:
    names = [f"_hospital ${index}$ x^" for index in range(sites)]
    row = dict.fromkeys(names, 1 / sites)
    _areas(mixing_png([{"round": r, "sites": names, "rows": dict.fromkeys(names, row)} for r in range(rounds)]))


def test_lines_in_any_order_and_a_repeated_round(tmp_path: Path) -> None:
    other = copy.deepcopy(FIRST)
    other["W"]["rows"]["a"] = {"a": 1.0}  # type: ignore[index]
    _run(tmp_path, LAST, other, FIRST)
    assert make_report(tmp_path).results["mixing"] == CLEAN


def test_any_site_is_accepted_if_the_study_names_none(tmp_path: Path) -> None:
    line = {"round": 0, "W": {"sites": ["x"], "rows": {"x": {"x": 1.0}}}}
    _run(tmp_path, line, study=make_study(sites=[], held_out=[]))
    assert make_report(tmp_path).results["mixing"][0]["sites"] == ["x"]


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    with (_run(tmp_path, FIRST) / "mixing.jsonl").open("a") as file:
        file.write('{"round": 1, "W": {"si')
    results = make_report(tmp_path).results
    assert results["mixing"] == CLEAN[:1]
    assert results["notes"] == ["the last line of mixing.jsonl is incomplete and was skipped"]


def _with(round_: Any = 0, **parts: Any) -> dict[str, Any]:
    return {"round": round_, "W": {**FIRST["W"], **parts}}  # type: ignore[dict-item]


SITES, MEAN = "W is not over the study's sites", "a row of W is not a mean over the sites that answered"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (12, "expected mapping"),
        ({"round": 0}, "missing key 'W'"),
        ({"round": 0, "W": None}, "W: expected mapping"),
        (_with(round_=-1), "round: it must be 0 or more"),
        (_with(round_=True), "round: expected int"),
        (_with(round_="0"), "round: expected int"),
        (_with(sites=["a"]), MEAN),  # b did not answer, and has weights
        (_with(sites=["a", "b", "a"]), SITES),
        (_with(sites=["a", "b", "c"]), SITES),  # held out
        (_with(sites=["a", "b", 3]), "W.sites.2: expected str"),
        (_with(sites=["a", "b", ["a"]]), "W.sites.2: expected str"),
        (_with(rows=[]), "W.rows: expected mapping"),
        (_with(rows={"x": {"a": 1.0}}), SITES),
        (_with(rows={"a": {}}), MEAN),
        (_with(rows={"a": {"a": 0.998}}), MEAN),
        (_with(rows={"a": {"a": 1.5, "b": -0.5}}), "W.rows.a.a: it must be 1 at most"),
        (_with(rows={"a": {"a": float("nan"), "b": 0.5}}), "W.rows.a.a: it must be a finite number"),
        (_with(rows={"a": {"a": "1"}}), "W.rows.a.a: expected float"),
        (_with(rows={"a": {"a": True}}), "W.rows.a.a: expected float"),
        (_with(rows={"a": [1.0]}), "W.rows.a: expected mapping"),
    ],
    ids=str,
)
def test_an_invalid_line_is_an_error_of_one_line(line: Any, message: str, tmp_path: Path) -> None:
    folder = _run(tmp_path, FIRST, line)
    with pytest.raises(ReportError) as caught:
        make_report(tmp_path)
    advice = "the run's records are damaged; run the job again"
    assert caught.value.line() == f"mixing.jsonl, line 2: {message}; {advice}"
    assert not (folder / "report").exists()
