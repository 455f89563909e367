"""Files of `write_tables`: the same bytes every time, well-formed, and safe against names with markup."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedfms.reporting.tables import write_tables, writers
from fedfms.reporting.tables.runs import Key, TableError
from fedfms.reporting.tables.sheets import BEST, SECOND, Cell, Sheet
from fedfms.reporting.text import escape
from tests.reporting.tables.make import BASE, fill, image_scores, put, result

COMMAND = "fedfms table prostate --methods fedmsa,fedunet,msa --seeds 0,1"
EVIL = "<script>alert(1)<x>"
VOID = {"meta", "wbr", "br", "hr", "img", "link", "input", "path", "use", "rect"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects tags, addresses and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of all tags of a name."""
        return [attributes for tag, attributes in self.tags if tag == name]


def read_page(path: Path) -> Reader:
    """The page, which must be well-formed."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def check_latex(text: str) -> None:
    """Braces and environments are balanced, and special characters are escaped."""
    depth, begun, position = 0, [], 0
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = re.sub(r"(?<!\\)%$", "", "\n".join(lines), flags=re.MULTILINE)
    while position < len(body):
        if match := re.compile(r"\\(begin|end)\{(\w+\*?)\}").match(body, position):
            if match[1] == "begin":
                begun.append(match[2])
            else:
                assert begun.pop() == match[2]
        elif not (match := re.compile(r"\\([a-zA-Z]+|[\\{}$&#%_])|\$\\pm\$").match(body, position)):
            depth += {"{": 1, "}": -1}.get(body[position], 0)
            assert depth >= 0
            assert body[position] not in '$#%_~^|"\\'
            assert body[position] not in "<>" or body[position - 6 : position] == "\\width"
        position = match.end() if match else position + 1
    assert (depth, begun) == (0, [])


@pytest.mark.slow
def test_the_files_and_the_terminals_text(tmp_path: Path) -> None:
    table = write_tables(fill(tmp_path, without=[("msa", 1, "UCL")]), COMMAND)
    names = ["table.csv", "table.md", "table.tex", "sheets.json", "index.html", "curves.png", "curves.svg"]
    assert [path.name for path in table.paths] == names
    assert all(path.stat().st_size > 500 for path in table.paths)
    assert table.missing == 1
    lines = table.text().splitlines()
    assert lines[0] == "Prostate in T2 MRI, protocol held-out"
    assert "not finished: 1 of 18 runs" in lines
    assert any(re.match(r" BIDMC +0\.820±0\.028 +0\.520±0\.028 +0\.810±0\.028 +8", line) for line in lines)
    assert any(re.match(r" BIDMC +0\.769 +0\.738±0\.025 +-0\.031", line) for line in lines)


def test_eighty_columns_cut_no_number(tmp_path: Path) -> None:
    sites = tuple(f"a_hospital_of_long_name_{i}" for i in range(7))
    for method in ("fedmsa", "fedsca", "fedsam", "msa", "sam"):
        for seed in (0, 1):
            images = {site: image_scores([0.5 + BASE[method] * i / 20 for i in range(9)]) for site in sites}
            put(tmp_path, result(method, seed, None, sites=sites), images)
    table = write_tables(tmp_path, COMMAND)
    buffer = io.StringIO()
    Console(file=buffer, width=80, no_color=True, force_terminal=False).print(table.group)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    for site in sites:
        assert sum(line.startswith(f" {site} ") for line in lines) >= 4 * 2  # five methods need two tables each
    assert not any("…" in line for line in lines)
    numbers = [word for line in lines for word in line.split() if re.match(r"\d\.\d", word)]
    assert all(re.fullmatch(r"\d\.\d{3}(±\d\.\d{3})?", word) for word in numbers)


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_tables(fill(tmp_path / "a"), COMMAND)
    second = write_tables(fill(tmp_path / "b"), COMMAND)
    again = write_tables(tmp_path / "a", COMMAND)
    assert first.text() == second.text() == again.text()
    for one, two in zip(first.paths, second.paths, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in first.paths)


def test_stored_sheets_are_read_back_unchanged(tmp_path: Path) -> None:
    write_tables(fill(tmp_path), COMMAND)
    raw = json.loads((tmp_path / "sheets.json").read_text())
    text = (tmp_path / "table.md").read_text()
    assert raw["command"] == COMMAND
    assert len(raw["sheets"]) == text.count("\n### ")
    for sheet in raw["sheets"]:
        assert writers.sheets_markdown([writers.read_sheet(raw, sheet["title"])]) in text
    with pytest.raises(TableError, match="no sheet 'Dice'"):
        writers.read_sheet(raw, "Dice")
    with pytest.raises(TableError, match="sheets.0.rows.0.0.text: expected str"):
        writers.read_sheet({"sheets": [raw["sheets"][0] | {"rows": [[{"text": 1}]]}]}, "Dice")


def test_the_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    write_tables(fill(tmp_path, without=[("msa", 1, "UCL")]), COMMAND)
    text = (tmp_path / "index.html").read_text()
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|javascript:", text)
    page = read_page(tmp_path / "index.html")
    assert {a.get("href") for a in page.of("a")} == {
        "#part-1", "#curves", "#made", "table.csv", "table.md", "table.tex",
    }  # fmt: skip
    assert not {"img", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert len(page.of("script")) == 1 and "src" not in page.of("script")[0]
    assert all(th.get("scope") in ("col", "row") for th in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table")) == 4 + 4 + 2 + 2 + 1
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in page.of("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    shown = " ".join(page.texts)
    for said in (
        COMMAND,
        "not finished: 1 of 18 runs",
        "a CPU",
        "2.13.0",
        "42.40",
        "raw logit > 0.1, 0.3, 0.5",
    ):
        assert said in shown


@pytest.mark.slow
def test_a_name_cannot_run(tmp_path: Path) -> None:
    sites = (EVIL, "b|c&$d$_e_", "UCL")
    for seed in (0, 1):
        for variant in ("L=1", "L=2"):
            put(tmp_path, result("fedmsa", seed, None, variant, sites=sites, title=EVIL, name="x<y",
                                 structures=(EVIL,)))  # fmt: skip
    for folder in sorted((tmp_path / "runs").iterdir()):
        content = json.loads((folder / "result.json").read_text())
        content["machine"] = {EVIL: EVIL}
        (folder / "result.json").write_text(json.dumps(content))
    paths = {path.name: path for path in write_tables(tmp_path, f"{EVIL} --set 'a'").paths}
    assert "ablation-x_y-L.svg" in paths
    for name in ("index.html", "curves.svg", "ablation-x_y-L.svg"):
        assert "<script>alert" not in paths[name].read_text(), name
    page = read_page(paths["index.html"])
    assert len(page.of("script")) == 1
    assert "x" not in {tag for tag, _ in page.tags}
    assert any(EVIL in text for text in page.texts)
    text = paths["table.md"].read_text()
    assert "<script" not in text.replace("\\<script", "").replace(f"    {EVIL}", "")
    check_latex(paths["table.tex"].read_text())


def test_markdown_and_latex_by_hand() -> None:
    row = (Cell("fed_msa"), Cell("0.810 ± 0.010", 0.81, BEST), Cell("-"))
    other = (Cell("msa"), Cell("0.700", 0.7, SECOND), Cell("1 of 2"))
    sheet = Sheet("A & B", "100 % of 2 < 3.", ("method", "HK", "runs"), (row, other), foot=((Cell("images"),) * 3,))
    assert writers.sheets_markdown([sheet]).splitlines() == [
        "### A \\& B", "", "100 % of 2 \\< 3.", "", "| method | HK | runs |", "| --- | ---: | ---: |",
        "| fed\\_msa | **0.810 ± 0.010** | - |", "| msa | <u>0.700</u> | 1 of 2 |", "| images | images | images |",
    ]  # fmt: skip
    text = writers.sheets_latex([sheet])
    assert "fed\\_msa & \\textbf{0.810 $\\pm$ 0.010} & -- \\\\\nmsa & \\underline{0.700} & 1 of 2 \\\\" in text
    assert "\\caption{100 \\% of 2 \\textless{} 3.}" in text
    assert "\\begin{tabular}{lrr}\n\\toprule\n" in text
    check_latex(text)


def test_latex_of_a_whole_table(tmp_path: Path) -> None:
    write_tables(fill(tmp_path), COMMAND)
    text = (tmp_path / "table.tex").read_text()
    check_latex(text)
    assert text.count("\\begin{tabular}") == 13
    assert "raw logit \\textgreater{} 0.1, 0.3, 0.5, 0.7, 0.9" in text


@given(st.text(max_size=40))
def test_any_text_is_escaped_for_latex(text: str) -> None:
    escaped = writers.latex_escape(text)
    check_latex(escaped)
    assert "\n" not in escaped


@given(st.text(max_size=40))
def test_any_text_is_one_field_of_markdown(text: str) -> None:
    escaped = escape(text)
    assert not re.search(r"(?<!\\)(\\\\)*[|<`*\[]", escaped.replace("\\\\", ""))
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())


def test_planned_runs_count_as_missing(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"))
    table = write_tables(tmp_path, COMMAND, [Key("fedmsa", seed, site) for seed in (0, 1) for site in ("UCL", "HK")])
    assert table.missing == 3
    assert "not finished: 3 of 4 runs" in (tmp_path / "index.html").read_text()


def test_files_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(TableError, match="table: its files cannot be written"):
        write_tables(tmp_path, COMMAND)
