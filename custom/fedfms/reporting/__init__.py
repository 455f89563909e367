"""What people see of a run: a table, curves, the resolved study, and results.json for programs."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fedfms.files import write_atomic
from fedfms.reporting.curves import curves_png
from fedfms.reporting.mixing import mixing_png
from fedfms.reporting.records import ReportError, overlays, read_records
from fedfms.reporting.results import make_results
from fedfms.reporting.table import footnotes, markdown, participation_line, rich_table


@dataclass(frozen=True)
class Report:
    """A run's report: its numbers, what a terminal shows, and the files that were written."""

    results: dict[str, Any]
    first_line: Text  # who took part
    tables: list[Table]
    table: Group  # all that a terminal shows: the first line, the tables, the notes
    paths: list[Path]
    overlays: list[Path]  # relative to the workspace; drawn by the sites, and staying with them


def make_report(run: Path, out: Path | None = None) -> Report:
    """Make the report of the run at or below the folder `run`, in the run's own folder unless `out` is given.

    Raises:
        ReportError: no run or several, damaged records, or no way to write.
        StudyError: the run's study is one of another version.
    """
    records = read_records(run)
    drawn = overlays(run, records.folder)
    results = make_results(records, drawn)
    models = [name for name in ("final", "best", "last") if name in results["models"]]
    files: dict[str, bytes | str] = {
        "results.json": json.dumps(results, indent=2, allow_nan=False),
        "table.md": markdown(results, models),
        "curves.png": curves_png(results),
        "config.yaml": yaml.safe_dump(records.run["study"], sort_keys=False, allow_unicode=True),
    }
    if records.mixing:
        files["mixing.png"] = mixing_png(records.mixing)
    first_line = Text(participation_line(results))
    tables = [rich_table(results, model) for model in models]
    return Report(
        results=results,
        first_line=first_line,
        tables=tables,
        table=Group(first_line, *tables, *map(Text, footnotes(results))),
        paths=_write(files, out or records.folder / "report"),
        overlays=drawn,
    )


def render_text(report: Report) -> str:
    """The first line, the tables and the notes as plain text, for a log."""
    buffer = io.StringIO()
    Console(file=buffer, width=140, no_color=True, force_terminal=False).print(report.table)
    return buffer.getvalue()


def _write(files: dict[str, bytes | str], folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise ReportError(
            f"the report cannot be written ({error.strerror})", where=folder.name, do="name another folder with --out"
        ) from error
    return [folder / name for name in files]


__all__ = ["Report", "ReportError", "make_report", "render_text"]
