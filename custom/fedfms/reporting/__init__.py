"""Reports: of one run (this module), tables of many runs (`tables`), and the cost of methods (`cost`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedfms.files import json_text, write_atomic
from fedfms.reporting.figures import curves_png
from fedfms.reporting.mixing import mixing_png
from fedfms.reporting.records import ReportError, overlays, read_records
from fedfms.reporting.results import make_results
from fedfms.reporting.table import footnotes, participation_line, report_markdown, rich_table
from fedfms.reporting.text import plain_text


@dataclass(frozen=True)
class Report:
    """A run's report: its numbers, its text for a terminal, and the written files."""

    results: dict[str, Any]
    first_line: Text  # validity and participation
    tables: list[Table]
    table: Group  # all that a terminal shows: the first line, the tables, the notes
    paths: list[Path]
    overlays: list[Path]  # relative to the workspace; they stay at the sites that drew them


def make_report(run: Path, out: Path | None = None) -> Report:
    """Write the report of the run at or below the folder `run` to `out`, by default to the run's own folder.

    Raises:
        ReportError: no run, several runs, damaged records, or the report cannot be written.
        StudyError: the run's study was written by another version.
    """
    records = read_records(run)
    drawn = overlays(run, records.folder)
    results = make_results(records, drawn)
    models = [name for name in ("final", "best", "last") if name in results["models"]]
    files: dict[str, bytes | str] = {
        "results.json": json_text(results),
        "table.md": report_markdown(results, models),
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
    return plain_text(report.table)


def _write(files: Mapping[str, bytes | str], folder: Path) -> list[Path]:
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
