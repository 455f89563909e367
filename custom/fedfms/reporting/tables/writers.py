"""Sheets for a terminal, as Markdown, LaTeX and JSON; the numbers of all runs as CSV."""

import csv
import dataclasses
import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from pydantic.dataclasses import dataclass
from rich.table import Table
from rich.text import Text

from fedfms.files import json_text
from fedfms.reporting.scores import OPEN
from fedfms.reporting.tables.runs import Run, TableError
from fedfms.reporting.tables.sheets import BEST, NONE, SECOND, Cell, Sheet
from fedfms.reporting.text import escape, markdown_table, terminal_table
from fedfms.schema import parse
from fedfms.training.metrics import METRICS

COLUMNS = (
    "study", "dataset", "protocol", "method", "variant", "seed", "held_out", "model", "round", "site", "structure",
    "mode", "metric", "value", "sd", "images", "empty",
)  # fmt: skip

_LATEX_HEAD = "% Needs \\usepackage{booktabs}, and \\usepackage{graphicx} for \\resizebox. Made by fedfms.\n"
_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''{}", "±": r"$\pm$",
}  # fmt: skip

_WIDTH = 79
_GAP = 2  # between columns
_HEAD = 11  # width at which a column's name is folded
_STYLES = {BEST: "bold", SECOND: "underline"}
_Column = tuple[str, Sequence[Cell]]
_table = partial(terminal_table, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")


@dataclass(frozen=True, config=OPEN)
class _SheetsFile:
    sheets: tuple[Sheet, ...]


def sheets_markdown(sheets: Iterable[Sheet]) -> str:
    """For each sheet a heading, its caption and a table."""
    return "\n".join(f"### {escape(sheet.title)}\n\n{sheet_markdown(sheet)}" for sheet in sheets)


def sheet_markdown(sheet: Sheet) -> str:
    """The sheet's caption and its table; best bold, second underlined."""
    rows = [[_markdown_cell(cell) for cell in row] for row in (*sheet.rows, *sheet.foot)]
    return f"{escape(sheet.caption)}\n\n{markdown_table(list(map(escape, sheet.head)), rows, left=sheet.names)}"


def _markdown_cell(cell: Cell) -> str:
    text = escape(cell.text)
    return {BEST: f"**{text}**", SECOND: f"<u>{text}</u>"}.get(cell.mark, text)


def sheets_latex(sheets: Iterable[Sheet]) -> str:
    """A `table*` per sheet for a paper, at most as wide as the page: booktabs, best bold, second underlined."""
    return _LATEX_HEAD + "".join(_latex_table(sheet) for sheet in sheets)


def _latex_table(sheet: Sheet) -> str:
    columns = "l" * sheet.names + "r" * (len(sheet.head) - sheet.names)
    foot = ["\\midrule", *map(_latex_line, sheet.foot)] if sheet.foot else []
    lines = [
        "", "\\begin{table*}", "\\centering", f"\\caption{{{latex_escape(sheet.caption)}}}",
        "\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{{columns}}}", "\\toprule",
        _latex_line(map(Cell, sheet.head)), "\\midrule", *map(_latex_line, sheet.rows), *foot, "\\bottomrule",
        "\\end{tabular}}", "\\end{table*}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _latex_line(cells: Iterable[Cell]) -> str:
    return " & ".join(map(_latex_cell, cells)) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = "--" if cell.text == NONE else latex_escape(cell.text)
    return {BEST: f"\\textbf{{{text}}}", SECOND: f"\\underline{{{text}}}"}.get(cell.mark, text)


def latex_escape(text: str) -> str:
    """`text` on one line, without LaTeX's special characters."""
    return "".join(_LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))


def sheets_json(sheets: Iterable[Sheet], command: str, made: Sequence[tuple[str, str]]) -> str:
    """{"command", "made": {machine and versions}, "sheets": [the fields of each `Sheet`]}, for pages of results."""
    fields = [dataclasses.asdict(sheet) for sheet in sheets]
    return json_text({"command": command, "made": dict(made), "sheets": fields})


def read_sheet(raw: Any, title: str) -> Sheet:
    """The first sheet with this title in the content of a `sheets.json`.

    Raises:
        TableError: there is none, or the content is not valid.
    """
    sheets = parse(_SheetsFile, raw, TableError, where="sheets.json", machine_written=True).sheets
    for sheet in sheets:
        if sheet.title == title:
            return sheet
    titles = [sheet.title for sheet in sheets]
    raise TableError(f"no sheet {title!r}", where="sheets.json", do=f"one of {titles}")


def long_form(runs: Iterable[Run]) -> str:
    """CSV with a row for each number of each run; `sd` is over the images of the site.

    Numbers have all digits, so that they read back as the same float64. Suppressed or uncounted numbers are empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        writer.writerows(_csv_rows(run))
    return text.getvalue()


def _csv_rows(run: Run) -> Iterator[tuple[object, ...]]:
    key, study = run.key, run.study
    first = (study.name, study.data.dataset, run.result.protocol, key.method, key.variant, key.seed, key.held_out)
    for name, model in run.models.items():
        for site, entry in model.sites.items():
            for mode, rows in entry.scores.by_mode().items() if entry.scores else ():
                for structure, row in rows.items():
                    for metric in METRICS:
                        numbers = (getattr(row, metric), getattr(row, f"{metric}_sd"), row.images, row.empty)
                        yield (*first, name, model.round, site, structure, mode, metric, *numbers)


def transposed(sheet: Sheet) -> Iterator[Table]:
    """The sheet with columns as rows, since it has many columns with long names; several tables if it is wide.

    Captions are omitted.
    """
    names = sheet.head[sheet.names :]
    rows = [*sheet.rows, *sheet.foot]
    columns = [(" ".join(cell.text for cell in row[: sheet.names]), row[sheet.names :]) for row in rows]
    first = max(map(len, names)) + _GAP
    for number, group in enumerate(_groups(columns, _WIDTH - first, 1 if sheet.sorts else 3)):
        head = ["", *(_fold(name) for name, _ in group)]
        table = _table(head, title=sheet.title if number == 0 else "", wraps=())
        for index, name in enumerate(names):
            table.add_row(Text(name), *(_text(cells[index]) for _, cells in group))
        yield table


def rich_table(sheet: Sheet) -> Table:
    """The sheet without its caption; the first and the last cell of a row wrap."""
    wraps = (0, len(sheet.head) - 1)
    table = _table(map(_fold, sheet.head), title=sheet.title, left=sheet.names, wraps=wraps, bottom=False)
    for row in (*sheet.rows, *sheet.foot):
        table.add_row(*map(_text, row))
    return table


def _groups(columns: Sequence[_Column], width: int, together: int) -> Iterable[list[_Column]]:
    """As many columns at a time as fit into `width`, at least the `together` ones that belong together."""
    groups: list[list[_Column]] = []
    left = 0
    for start in range(0, len(columns), together):
        part = list(columns[start : start + together])
        needed = sum(map(_width, part))
        if not groups or needed > left:
            groups.append([])
            left = width
        groups[-1] += part
        left -= needed
    return groups


def _width(column: _Column) -> int:
    name, cells = column
    return _GAP + max(*(len(_text(cell)) for cell in cells), *map(len, _fold(name).split("\n")), 1)


def _fold(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _HEAD))


def _text(cell: Cell) -> Text:
    return Text(cell.text.replace(" ± ", "±"), style=_STYLES.get(cell.mark, ""))
