"""All runs of a table: a process each, some at once, their rounds on disk; a run that is there is not run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfms.errors import FedfmsError, StudyError
from fedfms.experiments.plan import Cell
from fedfms.experiments.run import RESULT, ROUNDS, run_cell
from fedfms.files import locked, write_atomic
from fedfms.machine import THREADS
from fedfms.settings import SiteSettings
from fedfms.study import Study

CELLS, TASK, FAULT, LOG = "cells", "cell.json", "fault.txt", "log.txt"
_POLL_S = 0.2
_FORMAT = 1

Progress = Callable[[Mapping[str, int]], None]


def run_cells(
    cells: Sequence[Cell], out: Path, settings: SiteSettings, *, engine: str, jobs: int, told: Progress,
    failed: Callable[[str, str], None] = lambda *_: None,
) -> dict[str, str]:  # fmt: skip
    """Run what is left of `cells` below `out`; returns the faults by run, each one line.

    Args:
        engine: "reference", the in-process loop, or "simulator", NVFLARE's.
        settings: with the threads of torch that each run has.
        jobs: runs at once.
        told: called with the rounds done by run, whenever that has changed.
        failed: called with a run and its fault, as soon as it has one.

    Raises:
        StudyError: as `check`.
    """
    for cell in cells:
        prepare(cell, out, settings, engine)
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
                    failed(name, faults[name])
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


def check(cells: Sequence[Cell], out: Path, engine: str) -> None:
    """Whether the runs that are below `out` are these.

    Raises:
        StudyError: there is one of the same name that is of another study or engine, or a damaged one.
    """
    for cell in cells:
        _standing(cell, out, engine)


def _standing(cell: Cell, out: Path, engine: str) -> dict[str, Any] | None:
    """What stands in the run's folder as its task, if anything does."""
    path = _folder(out, cell) / TASK
    if not path.is_file():
        return None
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        threads = old["threads"]
    except (OSError, ValueError, TypeError, KeyError):
        threads = None
    if type(threads) is not int:
        raise StudyError(f"{TASK} of {cell.name} is damaged", where="table", do="remove the run's folder")
    wanted = {"format": _FORMAT, "cell": cell.place(), "study": cell.study.to_dict()}
    if any(old.get(key) != json.loads(json.dumps(value)) for key, value in wanted.items()):
        raise StudyError(f"{cell.name} is there of another study", where="table", do="name another --out")
    if old.get("engine") != engine:
        raise StudyError(f"{cell.name} is there of another --engine", where="table", do="name another --out")
    return dict(old)


def prepare(cell: Cell, out: Path, settings: SiteSettings, engine: str) -> None:
    """Write down what the run's process is to do; a run that was begun keeps its number of threads.

    Raises:
        StudyError: as `check`.
    """
    folder = _folder(out, cell)
    folder.mkdir(parents=True, exist_ok=True)
    if (old := _standing(cell, out, engine)) is not None:  # sums of another number of threads differ in the last bit
        settings = replace(settings, threads=old["threads"])
    task = {
        "format": _FORMAT,
        "cell": cell.place(),
        "study": cell.study.to_dict(),
        "engine": engine,
        "settings": settings.to_dict(),
        "threads": settings.threads,
    }
    write_atomic(folder / TASK, json.dumps(task, indent=1), mode=0o600)  # the settings are paths of this machine


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / FAULT).unlink(missing_ok=True)
    threads = json.loads((folder / TASK).read_text(encoding="utf-8"))["threads"]
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedfms.experiments.runner", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, THREADS: str(threads)},
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


def _main(folder: Path, parent: int) -> int:
    """The process of one run, which process `parent` has asked for."""
    import torch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it has started is ended, too
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])

    def go_on() -> None:
        if os.getppid() != parent:  # it was killed: a run goes on when it is asked for again
            raise SystemExit(1)

    try:
        # Of a table that was killed, a run may still be in its last round; the table's own lock keeps others out.
        with locked(folder, wait=True) as lock:
            go_on()
            _run(task, folder, go_on, lock)
    except FedfmsError as error:
        write_atomic(folder / FAULT, error.line())
        return 1
    return 0


def _run(task: dict[str, Any], folder: Path, go_on: Callable[[], None], lock: int) -> None:
    study, settings = Study.from_dict(task["study"]), SiteSettings.from_dict(task["settings"])
    if task["engine"] == "simulator":
        from fedfms.experiments.simulator_engine import run_simulated

        run_simulated(task["cell"], study, settings, folder, lock)
    else:
        run_cell(task["cell"], study, settings, folder, go_on)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), int(sys.argv[2])))
