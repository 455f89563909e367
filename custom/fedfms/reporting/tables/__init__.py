"""Tables of an experiment's finished runs: read the runs (`runs`), compute the numbers (`summary`, `published`,
`significance`), and write CSV, Markdown, LaTeX, figures and an HTML page.

The same runs give the same bytes: dates and paths appear only if a run or the command line contains them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.text import Text

from fedfms.files import write_atomic
from fedfms.methods import METHODS
from fedfms.reporting.tables import sheets
from fedfms.reporting.tables.page import Part, make_page
from fedfms.reporting.tables.plots import Figure, ablations, curves, shifts
from fedfms.reporting.tables.published import compare
from fedfms.reporting.tables.runs import RUNS, Key, Run, TableError, read_runs
from fedfms.reporting.tables.significance import paired_tests
from fedfms.reporting.tables.summary import Block, make_blocks, score_tables
from fedfms.reporting.tables.writers import (
    long_form,
    rich_table,
    sheets_json,
    sheets_latex,
    sheets_markdown,
    transposed,
)  # fmt: skip
from fedfms.reporting.text import escape, plain_text


@dataclass(frozen=True)
class TableText:
    """The table for a terminal, and the written files."""

    group: Group
    paths: list[Path]
    missing: int  # planned runs that are not finished

    def text(self) -> str:
        """`group` as plain text, for a log."""
        return plain_text(self.group)


def write_tables(out: Path, command: str, planned: Sequence[Key] = ()) -> TableText:
    """Read the runs below `out`, and write table.csv, table.md, table.tex, sheets.json, index.html, curves and
    ablations there.

    Args:
        command: the command line that produced the runs, shown on the page.
        planned: all planned runs, held-out sites in the order of the columns. Default: every method and variant with
            every seed and site of any finished run.

    Raises:
        TableError: there is no finished run, one is damaged, or the files cannot be written.
        StudyError: a run's study was written by another version.
    """
    runs, unfinished = read_runs(out)
    blocks = make_blocks(runs, planned, list(METHODS))
    parts = [_part(block) for block in blocks]
    drawn = curves(blocks)
    title = "; ".join(dict.fromkeys(block.title for block in blocks))
    made = sheets.made_with(runs)
    shown = [sheet for part in parts for sheet in part.sheets]
    figures = [drawn, *(figure for part in parts for figure in part.figures)]
    files: dict[str, bytes | str] = {
        "table.csv": long_form(runs),
        "table.md": _markdown(title, parts, figures, command, made),
        "table.tex": sheets_latex(shown),
        "sheets.json": sheets_json(shown, command, made),
        "index.html": make_page(parts, drawn, command, made, title),
    }
    for figure in figures:
        files |= {f"{figure.name}.png": figure.png, f"{figure.name}.svg": figure.svg}
    return TableText(_group(parts, unfinished), _write(files, out), sum(block.missing for block in blocks))


def _part(block: Block) -> Part:
    has_best = any("best" in run.models for run in block.runs)
    return Part(
        name=f"{block.title}, protocol {block.protocol}",
        missing=sheets.not_finished(block),
        notes=sheets.differing_settings(block),
        scores=[sheets.score_sheet(block, table) for table in score_tables(block, "final")],
        best=[sheets.score_sheet(block, table) for table in score_tables(block, "best")] if has_best else [],
        published=[sheet for comparison in compare(block) for sheet in sheets.comparison_sheets(comparison)],
        tests=sheets.significance_sheets(paired_tests(block)),
        figures=[*ablations(block), *shifts(block)],
        cost=sheets.cost_sheet(block),
    )


def _markdown(
    title: str, parts: Sequence[Part], figures: Sequence[Figure], command: str, made: Sequence[tuple[str, str]]
) -> str:
    texts = [f"# {escape(title)}\n"]
    for part in parts:
        notes = "".join(f"{escape(note)}\n\n" for note in (part.missing, *part.notes) if note)
        texts.append(f"## {escape(part.name)}\n\n{notes}{sheets_markdown(part.sheets)}")
    texts += [f"![{escape(figure.description)}]({figure.name}.png)\n" for figure in figures]
    machine = "".join(f"- {escape(name)}: {escape(value)}\n" for name, value in made)
    indented = "".join(f"    {line}\n" for line in command.splitlines())
    return "\n".join([*texts, f"## How it was made\n\n{indented}\n{machine}"])


def _group(parts: Sequence[Part], unfinished: int) -> Group:
    """Scores of the final models, the papers' figures, tests over all sites, cost, notes."""
    shown: list[object] = []
    for part in parts:
        shown.append(Text(part.name, style="bold"))
        shown += [table for sheet in (*part.scores, *part.published) for table in transposed(sheet)]
        shown += [rich_table(sheet) for sheet in (*part.tests[:1], part.cost)]
        shown += [Text(note) for note in (*part.notes, part.missing) if note]
    if unfinished:
        shown.append(Text(f"Folders of runs without a result: {unfinished}"))
    return Group(*shown)  # type: ignore[arg-type]


def _write(files: Mapping[str, bytes | str], folder: Path) -> list[Path]:
    try:
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise TableError(
            f"its files cannot be written ({error.strerror})", where="table", do="name another folder with --out"
        ) from None
    return [folder / name for name in files]


__all__ = ["RUNS", "Key", "Run", "TableError", "TableText", "write_tables"]
