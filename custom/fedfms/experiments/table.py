"""A table's folder: what was asked for, and the tables made of the runs that are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedfms.errors import StudyError
from fedfms.experiments.plan import Cell, Grid
from fedfms.experiments.runner import CELLS
from fedfms.files import write_atomic
from fedfms.reporting.tables import Key, TableText, write_tables

_FILE = "table.json"
_FORMAT = 1


def refuse_foreign(out: Path) -> None:
    """A table's folder is one of its own: a person's other files are not to lie among its runs.

    Raises:
        StudyError: `out` holds something, and no table was begun there.
    """
    if out.is_dir() and not (out / _FILE).is_file() and any(map(_foreign, out.iterdir())):
        raise StudyError(
            f"{out.resolve().name} holds other files, and no table", where="table", do="name a new folder as --out"
        )


def _foreign(path: Path) -> bool:
    """Neither what a table leaves that was cut as it began, nor the log of its own output."""
    ours = path.name in (CELLS, "cache", "lost+found") or path.name.startswith(".")
    return not ours and (path.is_dir() or path.suffix not in (".log", ".txt"))


def save_grid(out: Path, grid: Grid, cells: Sequence[Cell], command: str) -> None:
    """Note what the table is of, for when its runs are not all there."""
    content = {
        "format": _FORMAT, "command": command, "grid": grid.to_dict(), "cells": [cell.place() for cell in cells],
    }  # fmt: skip
    write_atomic(out / _FILE, json.dumps(content, indent=1))


def render(out: Path) -> TableText:
    """Write the tables of the runs below `out`, which `save_grid` described.

    Raises:
        StudyError: no table was begun there.
        TableError: no run is finished, or one is damaged.
    """
    try:
        content = json.loads((out / _FILE).read_text(encoding="utf-8"))
        command, planned = str(content["command"]), [Key(**place) for place in content["cells"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise StudyError(
            f"{out.resolve().name} holds no table", where="table", do="name the --out of a `fedfms table`"
        ) from None
    return write_tables(out, command, planned)
