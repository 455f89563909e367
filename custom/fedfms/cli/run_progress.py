"""The progress of a simulated run on the terminal: a line for each finished round with an ETA, and a bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedfms.reporting.records import ENDED, clean_reason
from fedfms.units import duration_text

if TYPE_CHECKING:
    from fedfms.study import Study


class RunProgress:
    """Follows the server's records while the simulator runs.

    Args:
        folder: of `fedfms.flare.simulator_runs.run_study`.
        console: receives the lines; on a terminal it also shows a bar.
    """

    def __init__(self, study: Study, folder: Path, console: Console) -> None:
        from fedfms.flare.progress import Snapshot
        from fedfms.flare.simulator_runs import records_folder
        from fedfms.methods import training_sites

        self._study, self._console = study, console
        self._records = records_folder(folder)
        self._plan = Snapshot(study.train.rounds, training_sites(study), study.held_out)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("starting", total=study.train.rounds)
        self._rows_before = -1
        self._done = 0  # rounds that have been printed, or were finished before
        self._started = time.monotonic()
        self._ends = list[float]()  # of the rounds that have been printed
        if done := max((row["round"] + 1 for row in self._rows()), default=0):
            self._done = done
            console.print(f"resuming after round {done} of {study.train.rounds}", highlight=False)

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def poll(self, *, last: bool = False) -> None:
        """Print the rounds that have finished since the last call; `last`: the simulator has ended."""
        rows = self._rows()
        settled = last or len(rows) == self._rows_before  # the server writes a round's rows one after the other
        self._rows_before = len(rows)
        if settled:
            for number in sorted({row["round"] for row in rows if row["round"] >= self._done}):
                self._print(number, [row for row in rows if row["round"] == number])
                self._done = number + 1
        total = self._study.train.rounds
        state = f"round {self._done + 1} of {total}" if self._done < total else "scoring the final models"
        self._bar.update(self._task, completed=self._done, description=state)

    def _print(self, number: int, rows: list[dict[str, Any]]) -> None:
        from fedfms.flare.progress import SiteRow
        from fedfms.flare.watch import round_lines

        first, *others = round_lines(
            number, [SiteRow.from_record(row, self._study.structure_names) for row in rows], self._plan
        )
        left, now = self._study.train.rounds - number - 1, time.monotonic()
        self._ends.append(now)
        # the first round includes the start of the simulator
        since, rounds = (self._ends[0], len(self._ends) - 1) if len(self._ends) > 1 else (self._started, 1)
        eta = f"; about {duration_text((now - since) / rounds * left)} left" if left else ""
        self._console.print(f"{first}{eta}", *others, sep="\n", markup=False, highlight=False, soft_wrap=True)

    def _rows(self) -> list[dict[str, Any]]:
        """The complete lines of `rounds.jsonl`; a line that is being written is left for the next call."""
        try:
            text = (self._records / "rounds.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:  # not written yet, or moved by a simulator that starts
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def failure(self) -> str:
        """Why the run ended early, by its records; empty if they do not say."""
        try:
            reason = json.loads((self._records / ENDED).read_text(encoding="utf-8")).get("reason")
        except FileNotFoundError:
            reason = None
        rejected = [f"{row['site']}: {row.get('reason')}" for row in self._rows() if not row["accepted"]]
        return clean_reason(reason) if reason else "; ".join(map(clean_reason, rejected[-3:]))
