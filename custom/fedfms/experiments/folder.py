"""The folder of an experiment: `table.json`, which records what was asked for, and the tables of its finished runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from fedfms.errors import StudyError
from fedfms.experiments.plan import Experiment, Run
from fedfms.files import nearest, write_atomic
from fedfms.reporting.tables import RUNS, Key, TableText, write_tables
from fedfms.schema import STRICT, parse, read_json, to_plain

TABLE = "table.json"


@dataclass(frozen=True, config=STRICT)
class Record:
    """The content of `table.json`."""

    command: str
    experiment: Experiment
    runs: tuple[Key, ...]
    format: Literal[1] = 1


def check_folder(out: Path) -> None:
    """Check that `out` can hold an experiment: a folder without other content, or a new one.

    Raises:
        StudyError: `out` contains other files, or it or one of its parents is a file.
    """
    if not (existing := nearest(out)).is_dir():
        raise StudyError(f"{existing.name} is a file", where="--out", do="name a folder")
    if out.is_dir() and not (out / TABLE).is_file() and any(map(_is_foreign, out.iterdir())):
        what = f"{out.resolve().name} contains other files, and no table"
        raise StudyError(what, where="table", do="name a new folder as --out")


def _is_foreign(path: Path) -> bool:
    """Neither left by an experiment that was killed at its start, nor a log of its output."""
    ours = path.name in (RUNS, "cache", "lost+found") or path.name.startswith(".")
    return not ours and (path.is_dir() or path.suffix not in (".log", ".txt"))


def save_record(out: Path, experiment: Experiment, runs: Sequence[Run], command: str) -> None:
    """Record the planned runs, so that a table can show which are missing."""
    record = Record(command, experiment, tuple(run.key for run in runs))
    write_atomic(out / TABLE, json.dumps(to_plain(record), indent=1))


def read_record(out: Path) -> Record:
    """The record of the experiment in `out`.

    Raises:
        StudyError: no experiment was started there, or its record is damaged.
    """
    where, do = "table", "name the --out of a `fedfms table`"
    if not (out / TABLE).is_file():
        raise StudyError(f"{out.resolve().name} contains no table", where=where, do=do)
    raw = read_json(out / TABLE, StudyError, where=where, do=do)
    return parse(Record, raw, StudyError, where=where, do=do)


def render(out: Path) -> TableText:
    """Write the tables of the finished runs below `out`.

    Raises:
        StudyError: as `read_record`.
        TableError: no run is finished, or a result is damaged.
    """
    record = read_record(out)
    return write_tables(out, record.command, record.runs)
