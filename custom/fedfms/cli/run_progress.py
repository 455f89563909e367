"""The progress of a simulated run on the terminal: a line for each finished round with an ETA, and a bar."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedfms.flare.progress import SiteRow, Snapshot
from fedfms.flare.simulator import finished_rounds, state_places
from fedfms.flare.simulator_runs import records_folder, run_workspace
from fedfms.flare.watch import round_lines
from fedfms.methods import training_sites
from fedfms.reporting.records import ENDED, clean_reason
from fedfms.units import duration_text

if TYPE_CHECKING:
    from fedfms.study import Study

_START = "run.json"  # the server's first record of a run, written after those of an earlier one are removed
_ERROR = re.compile(r"^(?:[\d :,-]+ - (?:ERROR|CRITICAL) - |(?=(?:\w+\.)*\w+(?:Error|Exception): ))(.*\w.*)$", re.M)
_Stamp = tuple[int, int]  # inode and time of modification


class RunProgress:
    """Follows the server's records while the simulator runs.

    Args:
        folder: of `fedfms.flare.simulator_runs.run_study`.
        console: receives the lines; on a terminal it also shows a bar.

    Raises:
        TrainingError: the state of the run to resume is damaged.
    """

    def __init__(self, study: Study, folder: Path, console: Console) -> None:
        workspace = run_workspace(folder)
        self._study, self._console = study, console
        self._records = records_folder(folder)
        self._plan = Snapshot(study.train.rounds, training_sites(study), study.held_out)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.done = finished_rounds(workspace)  # and printed, by this command or an earlier one
        self._task = self._bar.add_task("starting", total=study.train.rounds, completed=self.done)
        below = self._records.relative_to(workspace)
        files = [root / below / name for root in state_places(workspace) for name in (_START, ENDED)]
        self._earlier = {_stamp(path) for path in files}  # records of an interrupted or failed start
        self._rows_before = -1
        self._ends = list[float]()  # of the server's start, and of the rounds that have been printed
        if self.done:
            console.print(f"resuming after round {self.done} of {study.train.rounds}", highlight=False)

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def poll(self, *, last: bool = False) -> None:
        """Print the rounds that have finished since the last call; `last`: the simulator has ended."""
        if not self._is_new(_START):
            return
        self._ends = self._ends or [time.monotonic()]
        rows = self._rows()
        settled = last or len(rows) == self._rows_before  # the server writes a round's rows one after the other
        self._rows_before = len(rows)
        if settled:
            for number in sorted({row["round"] for row in rows if row["round"] >= self.done}):
                self._print(number, [row for row in rows if row["round"] == number])
                self.done = number + 1
        total = self._study.train.rounds
        state = f"round {self.done + 1} of {total}" if self.done < total else "scoring the final models"
        self._bar.update(self._task, completed=self.done, description=state)

    def _print(self, number: int, rows: list[dict[str, Any]]) -> None:
        first, *others = round_lines(
            number, [SiteRow.from_record(row, self._study.structure_names) for row in rows], self._plan
        )
        left = self._study.train.rounds - number - 1
        self._ends.append(time.monotonic())
        # In the first round the sites start; it counts only until there is another one.
        begin, *_, end = self._ends[1:] if len(self._ends) > 2 else self._ends  # noqa: PLR2004
        a_round = (end - begin) / max(1, len(self._ends) - 2)
        eta = f"; about {duration_text(a_round * left)} left" if left else ""
        self._console.print(f"{first}{eta}", *others, sep="\n", markup=False, highlight=False, soft_wrap=True)

    def _rows(self) -> list[dict[str, Any]]:
        """The complete lines of `rounds.jsonl`; a line that is being written is left for the next call."""
        try:
            text = (self._records / "rounds.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:  # before the first round
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def _is_new(self, name: str) -> bool:
        """Whether the simulator that runs now has written this record."""
        return _stamp(self._records / name) not in {None, *self._earlier}

    def failure(self, log: str) -> str:
        """Why the run ended early: by its records, else the last error in the simulator's output; empty if unknown."""
        reason = ""
        if self._is_new(ENDED):
            reason = json.loads((self._records / ENDED).read_text(encoding="utf-8")).get("reason")
        if not reason and self._is_new(_START):
            rejected = (row for row in self._rows() if not row["accepted"] and row["site"] not in self._study.held_out)
            reason = "; ".join(f"{row['site']}: {row.get('reason')}" for row in list(rejected)[-3:])
        return clean_reason(reason or (_ERROR.findall(log) or [""])[-1]).removeprefix("fedfms: ")


def _stamp(path: Path) -> _Stamp | None:
    """What identifies one version of a file that is written atomically; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
