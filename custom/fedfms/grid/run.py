"""All runs of a table: a process each, some at once, their rounds on disk; a run that is there is not run again."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedfms.errors import FedfmsError, StudyError, TrainingError
from fedfms.files import write_atomic
from fedfms.grid.cell import RESULT, ROUNDS, run_cell
from fedfms.grid.plan import Cell
from fedfms.settings import SiteSettings
from fedfms.study import Study

CELLS, TASK, FAULT, LOG = "cells", "cell.json", "fault.txt", "log.txt"
_POLL_S = 0.2
_FORMAT = 1

Progress = Callable[[Mapping[str, int]], None]


def run_cells(
    cells: Sequence[Cell], out: Path, settings: SiteSettings, *, engine: str, jobs: int, threads: int, told: Progress
) -> dict[str, str]:
    """Run what is left of `cells` below `out`; returns the faults by run, each one line.

    Args:
        engine: "reference", the in-process loop, or "simulator", NVFLARE's.
        jobs: runs at once.
        threads: of torch, in each.
        told: called with the rounds done by run, whenever that has changed.

    Raises:
        StudyError: `out` holds a run of another study under the same name.
    """
    for cell in cells:
        prepare(cell, out, settings, engine, threads)
    waiting = [cell for cell in cells if not (_folder(out, cell) / RESULT).is_file()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    faults: dict[str, str] = {}
    done: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell.name] = _start(_folder(out, cell))
            for name in [name for name, process in running.items() if process.poll() is not None]:
                running.pop(name)
                if not (out / CELLS / name / RESULT).is_file():
                    faults[name] = _fault(out / CELLS / name)
            now = {cell.name: rounds_done(_folder(out, cell), cell.study.train.rounds) for cell in cells}
            if now != done:
                done = now
                told(now)
            time.sleep(_POLL_S)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return faults


def _folder(out: Path, cell: Cell) -> Path:
    return out / CELLS / cell.name


def prepare(cell: Cell, out: Path, settings: SiteSettings, engine: str, threads: int) -> None:
    """Write down what the run's process is to do, unless it stands there already."""
    folder = _folder(out, cell)
    folder.mkdir(parents=True, exist_ok=True)
    task = {
        "format": _FORMAT,
        "cell": cell.place(),
        "study": cell.study.to_dict(),
        "engine": engine,
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
        "threads": threads,
    }
    path = folder / TASK
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if any(old.get(key) != json.loads(json.dumps(task[key])) for key in ("format", "cell", "study", "engine")):
            raise StudyError(f"{cell.name} is there of another study", where="table", do="name another --out")
        task["threads"] = old["threads"]  # sums of another number of threads differ in the last bit
    write_atomic(path, json.dumps(task, indent=1), mode=0o600)  # the settings are paths of this machine


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / FAULT).unlink(missing_ok=True)
    threads = json.loads((folder / TASK).read_text(encoding="utf-8"))["threads"]
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedfms.grid.run", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip


def _fault(folder: Path) -> str:
    with suppress(OSError):
        return (folder / FAULT).read_text(encoding="utf-8").strip()
    return f"it ended without a word; its log is {folder.name}/{LOG}"


def rounds_done(folder: Path, of: int) -> int:
    """Rounds that the run in `folder` has finished, `of` so many."""
    if (folder / RESULT).is_file():
        return of
    with suppress(OSError):
        return len({line.split(b",", 1)[0] for line in (folder / ROUNDS).read_bytes().splitlines()})
    return 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process works in `folder` meanwhile.

    Raises:
        TrainingError: one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(
                "another process works in this folder", where=folder.name, do="wait for it, or stop it"
            ) from None
        yield


def _main(folder: Path) -> int:
    """The process of one run."""
    import torch

    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    parent = os.getppid()

    def go_on() -> None:
        if os.getppid() != parent:  # whoever started it was killed: a run goes on when it is asked for again
            raise SystemExit(1)

    try:
        with locked(folder):
            _run(task, folder, go_on)
    except FedfmsError as error:
        write_atomic(folder / FAULT, error.line())
        return 1
    return 0


def _run(task: dict[str, Any], folder: Path, go_on: Callable[[], None]) -> None:
    study, settings = Study.from_dict(task["study"]), _settings(task["settings"])
    if task["engine"] == "simulator":
        from fedfms.flare.simulate import run_simulated

        run_simulated(task["cell"], study, settings, folder)
    else:
        run_cell(task["cell"], study, settings, folder, go_on)


def _settings(raw: dict[str, Any]) -> SiteSettings:
    paths = {key: Path(raw[key]) for key in ("data_root", "checkpoints", "cache") if raw[key] is not None}
    return SiteSettings(**{**raw, **paths})


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
