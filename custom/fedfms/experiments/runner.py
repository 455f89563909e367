"""All runs of an experiment: one process each, several in parallel. A finished run is not executed again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from fedfms.errors import FedfmsError, StudyError
from fedfms.experiments.inprocess_engine import read_rounds, run_in_process
from fedfms.experiments.plan import Run
from fedfms.experiments.result import RESULT
from fedfms.files import locked, write_atomic
from fedfms.machine import THREADS
from fedfms.reporting.tables import RUNS, Key
from fedfms.schema import STRICT, parse, read_json, to_plain
from fedfms.settings import SiteSettings
from fedfms.study import Study

TASK, ERROR, LOG = "task.json", "error.txt", "log.txt"
_POLL_S = 0.2

Engine = Literal["in-process", "simulator"]
Progress = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True, config=STRICT)
class Task:
    """What the process of a run executes: the content of `task.json`."""

    run: Key
    study: Study
    engine: Engine
    """in-process: the loop of `fedfms.federation.inprocess`. simulator: NVFLARE's."""
    settings: SiteSettings
    format: Literal[1] = 1


def execute_runs(
    runs: Sequence[Run], out: Path, settings: SiteSettings, *, engine: Engine, jobs: int, progress: Progress,
    on_error: Callable[[str, str], None] = lambda *_: None,
) -> dict[str, str]:  # fmt: skip
    """Execute or resume the unfinished `runs` below `out`; returns one line of error for each failed run.

    Args:
        settings: with the number of threads for each run.
        jobs: runs in parallel.
        progress: called with the number of finished rounds by run, whenever it has changed.
        on_error: called with a run and its error as soon as the run has failed.

    Raises:
        StudyError: as `check_tasks`.
    """
    for run in runs:
        prepare(run, out, settings, engine)
    waiting = [run for run in runs if not is_finished(out, run)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    errors: dict[str, str] = {}
    done: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run.name] = _start(_folder(out, run))
            for name in [name for name, process in running.items() if process.poll() is not None]:
                running.pop(name)
                if not (out / RUNS / name / RESULT).is_file():
                    errors[name] = _error(out / RUNS / name)
                    on_error(name, errors[name])
            now = {run.name: _finished_rounds(out, run) for run in runs}
            if now != done:
                done = now
                progress(now)
            time.sleep(_POLL_S)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return errors


def _folder(out: Path, run: Run) -> Path:
    return out / RUNS / run.name


def is_finished(out: Path, run: Run) -> bool:
    """Whether a run below `out` has a result."""
    return (_folder(out, run) / RESULT).is_file()


def _finished_rounds(out: Path, run: Run) -> int:
    return run.study.train.rounds if is_finished(out, run) else len(read_rounds(_folder(out, run)))


def check_tasks(runs: Sequence[Run], out: Path, engine: Engine) -> None:
    """Check that the runs already started below `out` are these.

    Raises:
        StudyError: a run of the same name has another study or engine, or its task file is damaged.
    """
    for run in runs:
        _started_task(run, out, engine)


def _started_task(run: Run, out: Path, engine: Engine) -> Task | None:
    """The task of a run that has been started, or None."""
    path = _folder(out, run) / TASK
    if not path.is_file():
        return None
    try:
        task = _read_task(path.parent)
    except FedfmsError:
        what = f"{TASK} of {run.name} is damaged or of another version"
        raise StudyError(what, where="table", do="remove the run's folder") from None
    for what, same in (("study", (task.run, task.study) == (run.key, run.study)), ("--engine", task.engine == engine)):
        if not same:
            raise StudyError(f"{run.name} exists with another {what}", where="table", do="name another --out")
    return task


def _read_task(folder: Path) -> Task:
    return parse(Task, read_json(folder / TASK, StudyError), StudyError, where=folder.name)


def prepare(run: Run, out: Path, settings: SiteSettings, engine: Engine) -> None:
    """Write the task file of a run. A resumed run keeps its thread count.

    Raises:
        StudyError: as `check_tasks`.
    """
    folder = _folder(out, run)
    folder.mkdir(parents=True, exist_ok=True)
    if (started := _started_task(run, out, engine)) is not None:  # the thread count changes the last bit of sums
        settings = dataclasses.replace(settings, threads=started.settings.threads)
    task = to_plain(Task(run.key, run.study, engine, settings))
    write_atomic(folder / TASK, json.dumps(task, indent=1), mode=0o600)  # the settings contain paths of this machine


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / ERROR).unlink(missing_ok=True)
    threads = _read_task(folder).settings.threads
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedfms.experiments.runner", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, THREADS: str(threads)},
        )  # fmt: skip


def _error(folder: Path) -> str:
    with suppress(OSError):
        return (folder / ERROR).read_text(encoding="utf-8").strip()
    return f"it ended without an error message; see {folder.name}/{LOG}"


def _main(folder: Path, parent: int) -> int:
    """The process of one run, started by the process `parent`."""
    import torch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its own child processes are stopped, too
    task = _read_task(folder)
    torch.set_num_threads(task.settings.threads)

    def stop_if_orphaned() -> None:
        if os.getppid() != parent:  # the parent was killed; a later command resumes the run
            raise SystemExit(1)

    try:
        # A run of a killed experiment may still be in its last round; the experiment's own lock excludes other users.
        with locked(folder, wait=True) as lock:
            stop_if_orphaned()
            run = Run(task.run, task.study)
            if task.engine == "simulator":
                from fedfms.experiments.simulator_engine import run_simulated

                run_simulated(run, task.settings, folder, lock)
            else:
                run_in_process(run, task.settings, folder, stop_if_orphaned)
    except FedfmsError as error:
        write_atomic(folder / ERROR, error.line())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), int(sys.argv[2])))
