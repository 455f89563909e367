"""Tables of finished cells: read them (`cells`), work out the numbers (`summary`, `published`, `significance`), and
write them as CSV, Markdown, LaTeX, figures and one page.

The same cells give the same bytes: no date and no path gets in but what a cell or the command line says.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from fedfms.files import write_atomic
from fedfms.methods import METHODS
from fedfms.reporting.tables import sheets
from fedfms.reporting.tables.cells import Cell, Key, TableError, read_cells
from fedfms.reporting.tables.latex import latex_tables
from fedfms.reporting.tables.longform import long_form
from fedfms.reporting.tables.markdown import escape, markdown_tables
from fedfms.reporting.tables.notes import made_with, unlike
from fedfms.reporting.tables.page import Part, make_page
from fedfms.reporting.tables.plots import Figure, ablations, curves, shifts
from fedfms.reporting.tables.published import compare
from fedfms.reporting.tables.significance import paired_tests
from fedfms.reporting.tables.stored import stored
from fedfms.reporting.tables.summary import Block, make_blocks, make_grids
from fedfms.reporting.tables.terminal import rich_table, turned


@dataclass(frozen=True)
class TableText:
    """What a terminal shows, and the files that were written."""

    group: Group
    paths: list[Path]
    missing: int  # cells that were to be run and are not finished

    def text(self) -> str:
        """`group` as plain text, for a log."""
        buffer = io.StringIO()
        Console(file=buffer, width=140, no_color=True, force_terminal=False).print(self.group)
        return buffer.getvalue()


def write_tables(out: Path, command: str, planned: Sequence[Key] = ()) -> TableText:
    """Read the cells below `out`, and write table.csv, table.md, table.tex, sheets.json, index.html, curves and
    ablations there.

    Args:
        command: the command line that made the cells, as it is told on the page.
        planned: all cells that were to be run, the held-out sites in the order of the columns. Without it, every
            method and variant with every seed and site of which any cell is finished.

    Raises:
        TableError: there is no finished cell, one is damaged, or the files cannot be written.
        StudyError: a cell's study is one of another version.
    """
    cells = read_cells(out)
    blocks = make_blocks(cells.finished, planned, list(METHODS))
    parts = [_part(block) for block in blocks]
    drawn = curves(blocks)
    title = "; ".join(dict.fromkeys(block.title for block in blocks))
    made = made_with(cells.finished)
    shown = [sheet for part in parts for sheet in _all_sheets(part)]
    figures = [drawn, *(figure for part in parts for figure in part.figures)]
    files: dict[str, bytes | str] = {
        "table.csv": long_form(cells.finished),
        "table.md": _markdown(title, parts, figures, command, made),
        "table.tex": latex_tables(shown),
        "sheets.json": stored(shown, command, made),
        "index.html": make_page(parts, drawn, command, made, title),
    }
    for figure in figures:
        files |= {f"{figure.name}.png": figure.png, f"{figure.name}.svg": figure.svg}
    return TableText(_group(parts, cells.unfinished), _write(files, out), sum(block.missing for block in blocks))


def _part(block: Block) -> Part:
    return Part(
        name=f"{block.title}, protocol {block.protocol}",
        missing=sheets.not_finished(block),
        notes=unlike(block),
        scores=[sheets.score_sheet(block, grid) for grid in make_grids(block, "final")],
        best=[sheets.score_sheet(block, grid) for grid in make_grids(block, "best") if "best" in block.models],
        published=[sheet for comparison in compare(block) for sheet in sheets.comparison_sheets(block, comparison)],
        tests=sheets.significance_sheets(paired_tests(block)),
        figures=[*ablations(block), *shifts(block)],
        cost=sheets.cost_sheet(block),
    )


def _all_sheets(part: Part) -> list[sheets.Sheet]:
    return [*part.scores, *part.best, *part.published, *part.tests, part.cost]


def _markdown(
    title: str, parts: Sequence[Part], figures: Sequence[Figure], command: str, made: Sequence[tuple[str, str]]
) -> str:
    texts = [f"# {escape(title)}\n"]
    for part in parts:
        notes = "".join(f"{escape(note)}\n\n" for note in (part.missing, *part.notes) if note)
        texts.append(f"## {escape(part.name)}\n\n{notes}{markdown_tables(_all_sheets(part))}")
    texts += [f"![{escape(figure.words)}]({figure.name}.png)\n" for figure in figures]
    machine = "".join(f"- {escape(name)}: {escape(value)}\n" for name, value in made)
    indented = "".join(f"    {line}\n" for line in command.splitlines())
    return "\n".join([*texts, f"## How it was made\n\n{indented}\n{machine}"])


def _group(parts: Sequence[Part], unfinished: int) -> Group:
    """Dice and IoU of the final models, what the papers have, the tests, and what is missing."""
    shown: list[object] = []
    for part in parts:
        shown.append(Text(part.name, style="bold"))
        shown += [table for sheet in (*part.scores, *part.published) for table in turned(sheet)]
        shown += [rich_table(sheet) for sheet in (*part.tests[:1], part.cost)]
        shown += [Text(note) for note in (*part.notes, part.missing) if note]
    if unfinished:
        shown.append(Text(f"Folders of cells without a result: {unfinished}"))
    return Group(*shown)  # type: ignore[arg-type]


def _write(files: dict[str, bytes | str], folder: Path) -> list[Path]:
    try:
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise TableError(
            f"its files cannot be written ({error.strerror})", where="table", do="name another folder with --out"
        ) from None
    return [folder / name for name in files]


__all__ = ["Cell", "Key", "TableError", "TableText", "write_tables"]
