"""The result pages: the committed tables are those that the command renders from the committed JSON."""

import json
from pathlib import Path

import pytest

from benchmarks.pages import PAGES, render


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_committed_tables_match_the_committed_json(page: Path) -> None:
    text = page.read_text()
    assert "<!-- table " in text
    assert render(page) == text, "run `python -m benchmarks pages`"


def test_a_table_can_be_rendered_repeatedly(tmp_path: Path) -> None:
    for name, value in (("a", 0.25), ("b", None)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"curves": {"mean_dice": [0.0, value]}}))
    page = tmp_path / "page.md"
    page.write_text('before\n<!-- table rounds "run a"=a.json b=b.json -->\nold\n<!-- end -->\nafter\n')
    expected = "| rounds | run a | b |\n| --- | --- | --- |\n| 0 | 0.000 | 0.000 |\n| 1 | 0.250 | - |\n"
    for _ in range(2):
        page.write_text(render(page))
        marker = '<!-- table rounds "run a"=a.json b=b.json -->'
        assert page.read_text() == f"before\n{marker}\n{expected}<!-- end -->\nafter\n"


def test_a_sheet_is_found_by_its_title(tmp_path: Path) -> None:
    field = {"text": "0.5", "value": 0.5, "mark": "best"}
    sheet = {"title": "Dice", "caption": "Of *all*.", "head": ["method", "site"], "rows": [[field, field]], "foot": [],
             "names": 1, "sorts": True}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps({"sheets": [sheet]}))
    page = tmp_path / "page.md"
    page.write_text("<!-- table sheet Dice=a.json -->\n<!-- end -->\n")
    assert "Of \\*all\\*.\n\n| method | site |\n| --- | ---: |\n| **0.5** | **0.5** |\n" in render(page)


def test_equal_machines_are_listed_once(tmp_path: Path) -> None:
    one = {"processor": "P", "instructions": "I", "cores": 2, "python": "3.11", "torch": "2.13"}
    (tmp_path / "a.json").write_text(json.dumps({"machine": one, "rows": []}))
    (tmp_path / "b.json").write_text(json.dumps({"made": one}))
    page = tmp_path / "page.md"
    page.write_text("<!-- table machine a=a.json b=b.json -->\n<!-- end -->\n")
    assert render(page).count("Made on P (I), 2 cores, Python 3.11, torch 2.13.") == 1


def test_an_unknown_kind_of_table_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table chart a=a.json -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="not a table: chart a=a.json"):
        render(page)
