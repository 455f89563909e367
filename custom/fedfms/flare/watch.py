"""Watching a job that was submitted: its rounds as they come, what it waits for, who refused it, how it ended.

One `nvflare job monitor` tells it all, with one login; it is begun again where the server is not reached.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import TIMEOUT, ConsoleError, ask, follow
from fedfms.flare.progress import KEY
from fedfms.reporting.records import clean_reason
from fedfms.reporting.scores import mean
from fedfms.units import size_text

Tell = Callable[[str], None]
ENDED, COMPLETED = "FINISHED:", "FINISHED:COMPLETED"
LOST_S = 1800.0  # NVFLARE itself waits 900 s for the sites' processes after a job's own has ended
_AGAIN_S = 10.0  # between two tries to reach the server
_ASK_S = 60.0  # between two questions why a job does not start
_NOISE = "NVFLARE_ERROR: "
_SILENT = "the server does not answer now; it is asked again"


class StillRunningError(ProvisioningError):
    """A job has not ended in the time that it was to be watched, and goes on."""


class Watch:
    """One job, watched: every round is told once, however often the watching is begun again.

    Args:
        kit: of a person who may view the job.
        tell: takes a line for whoever looks.
    """

    def __init__(self, kit: Path, id_: str, tell: Tell) -> None:
        self._kit, self._id, self._tell = kit, id_, tell
        self._rounds: set[int] = set()
        self._told: set[str] = set()  # lines that are told once
        self._of: dict[str, Any] = {}
        self._asked = self._heard = time.monotonic()

    def wait(self, limit_s: float) -> str:
        """Tell what happens until the job has ended; returns its status.

        Raises:
            StillRunningError: it has not ended in `limit_s`.
            ProvisioningError: the server has lost it.
            ConsoleError: this kit may not look at it, or there is no such job.
        """
        until = time.monotonic() + limit_s
        while (left := until - time.monotonic()) > 0:
            if status := self._follow(left):
                return status
            if (left := until - time.monotonic()) > 0:
                self._once(_SILENT)
                time.sleep(min(_AGAIN_S, left))
        raise StillRunningError("it has not ended in the time to watch it", where=f"job {self._id}", do="it goes on")

    def _follow(self, limit_s: float) -> str:
        """Tell what one monitoring tells; the job's last status, empty if it has not ended."""
        self._heard = time.monotonic()
        seconds = str(math.ceil(limit_s))
        command = ("job", "monitor", self._id, "--metric", KEY, "--interval", "2", "--timeout", seconds)
        with closing(follow(self._kit, *command, limit_s=limit_s)) as events:
            return next(filter(None, map(self._take, events)), "")

    def _take(self, event: Mapping[str, Any]) -> str:
        """What an event tells; the job's last status if it has ended."""
        status = str(event.get("job_status") or "")
        if status.startswith(ENDED):
            return status
        code = str(event.get("error_code") or "")
        if event.get("terminal"):
            error = ConsoleError(str(event.get("message") or code), where=f"job {self._id}")
            error.code = code
            if code != TIMEOUT and code and not error.unreached:
                raise error
            return ""
        self._told.discard(_SILENT)
        metrics = event.get("metrics")
        told = metrics.get(KEY) if isinstance(metrics, dict) else None
        if told is not None:
            self._heard = time.monotonic()
        if status == "RUNNING":
            if self._once("it runs"):
                self._refusals()
            self._check_lost()
        elif time.monotonic() - self._asked > _ASK_S:
            self._asked = self._heard = time.monotonic()
            self._why()
        self.rows(_progress(told))
        return ""

    def rows(self, progress: Mapping[str, Any]) -> None:
        """Tell the rounds in it that have not been told.

        Args:
            progress: "rows" as `fedfms.flare.progress.brief` makes them; perhaps "planned", "sites", "held_out".
        """
        self._of = {**self._of, **{key: value for key, value in progress.items() if key != "rows"}}
        rows = [row for row in progress.get("rows", ()) if row["round"] not in self._rounds]
        for number in sorted({row["round"] for row in rows}):
            self._rounds.add(number)
            for line in round_lines(number, [row for row in rows if row["round"] == number], self._of):
                self._tell(line)

    def _once(self, line: str) -> bool:
        new = line not in self._told
        if new:
            self._told.add(line)
            self._tell(line)
        return new

    def _check_lost(self) -> None:
        if time.monotonic() - self._heard > LOST_S:
            raise ProvisioningError(
                f"the server says that it runs, and for {LOST_S / 60:.0f} min nothing of it was heard",
                where=f"job {self._id}",
                do="was the server restarted? then `fedfms resume JOB --job-id ID --out NEW`, and submit that",
            )  # fmt: skip

    def meta(self) -> dict[str, Any]:
        """What NVFLARE keeps of the job; nothing where the server is not reached."""
        try:
            return ask(self._kit, "job", "meta", self._id)
        except ConsoleError as error:
            if error.unreached:
                return {}
            raise

    def _refusals(self) -> None:
        for site, reason in refusals(self.meta()).items():
            self._once(f"  {site} refused the job: {reason}")

    def _why(self) -> None:
        history = self.meta().get("schedule_history") or []
        if history:  # "YYYY-MM-DD hh:mm:ss: the reason"
            self._once(f"it waits: {clean_reason(str(history[-1]).split(': ', 1)[-1])}")


def refusals(meta: Mapping[str, Any]) -> dict[str, str]:
    """Who did not take the job when it was sent to them, and why; from what NVFLARE keeps of it."""
    detail = meta.get("job_deploy_detail")
    found = (str(line).partition(": ") for line in (detail if isinstance(detail, list) else ()))
    return {who: clean_reason(why.removeprefix(_NOISE)) for who, colon, why in found if colon and why != "OK"}


def round_lines(number: int, rows: Iterable[Mapping[str, Any]], of: Mapping[str, Any]) -> list[str]:
    """A round in a line, and a line for each site that has no part in it."""
    by_site = {row["site"]: row for row in rows}
    trained = [row for row in by_site.values() if not row["held_out"]]
    held_out = [row for row in by_site.values() if row["held_out"]]
    accepted = [row for row in trained if row["accepted"]]
    named = of.get("sites") or [row["site"] for row in trained]
    planned = f"/{of['planned']}" if "planned" in of else ""
    dice = f"val dice {_share(trained)}" + (f", held out {_share(held_out)}" if held_out else "")
    up, down = (sum(row[key] or 0 for row in by_site.values()) for key in ("bytes_up", "bytes_down"))
    seconds = max((row["seconds"] or 0 for row in by_site.values()), default=0)
    lines = [
        f"round {number + 1}{planned}: {len(accepted)} of {len(named)} sites; {dice}; "
        f"up {size_text(up)}, down {size_text(down)}; {seconds:.0f} s"
    ]
    for row in sorted(trained, key=lambda row: str(row["site"])):
        if not row["accepted"]:
            lines.append(f"  {row['site']} refused: {row['reason'] or 'no reason given'}")
    absent = sorted({*named, *of.get("held_out", ())} - set(by_site))
    return lines + [f"  {site} did not answer" for site in absent]


def _share(rows: Iterable[Mapping[str, Any]]) -> str:
    value = mean(row["dice"] for row in rows)
    return "-" if value is None else f"{value:.3f}"


def _progress(text: Any) -> dict[str, Any]:
    """What the server's recorder told, if it came whole: NVFLARE blacks out what it takes for a password."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
