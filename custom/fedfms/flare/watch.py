"""Watch a submitted job: print its rounds as they end, what it waits for, which sites rejected it, and how it ended.

One `nvflare job monitor` with one login reports all of it; it is restarted when the server does not answer.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import TIMEOUT, Event, NvflareError, Reply, run_with_kit, stream_events
from fedfms.flare.progress import KEY, SiteRow, Snapshot
from fedfms.reporting.records import clean_reason
from fedfms.reporting.scores import mean
from fedfms.schema import parse_bytes
from fedfms.units import size_text

PrintLine = Callable[[str], None]
ENDED, COMPLETED = "FINISHED:", "FINISHED:COMPLETED"
LOST_S = 1800.0  # NVFLARE itself waits 900 s for the sites' processes after the job's own has ended
_RETRY_S = 10.0  # between attempts to reach the server
_REASON_S = 60.0  # between requests for why a job has not started
_PREFIX = "NVFLARE_ERROR: "
_NO_ANSWER = "the server does not answer; retrying"


class StillRunningError(ProvisioningError):
    """The time to watch a job is over, and the job still runs."""


class JobWatcher:
    """Watches one job and prints each round once, also when the monitoring restarts.

    Args:
        kit: of a person who may view the job.
        print_line: receives each line of output.
    """

    def __init__(self, kit: Path, id_: str, print_line: PrintLine) -> None:
        self._kit, self._id, self._print = kit, id_, print_line
        self._rounds: set[int] = set()
        self._printed: set[str] = set()  # lines to print once
        self._plan = Snapshot()
        self._reason_at = self._progress_at = time.monotonic()

    def wait(self, timeout_s: float) -> str:
        """Print progress until the job has ended; returns its status.

        Raises:
            StillRunningError: it has not ended within `timeout_s`.
            ProvisioningError: the server has lost it.
            NvflareError: this kit may not view the job, or the job does not exist.
        """
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            if status := self._monitor(left):
                return status
            if (left := until - time.monotonic()) > 0:
                self._print_once(_NO_ANSWER)
                time.sleep(min(_RETRY_S, left))
        raise StillRunningError("it has not ended within the time limit", where=f"job {self._id}", do="it still runs")

    def _monitor(self, timeout_s: float) -> str:
        """Run one `nvflare job monitor`; returns the job's final status, empty if it has not ended."""
        self._progress_at = time.monotonic()
        seconds = str(math.ceil(timeout_s))
        command = ("job", "monitor", self._id, "--metric", KEY, "--interval", "2", "--timeout", seconds)
        with closing(stream_events(self._kit, *command, timeout_s=timeout_s)) as events:
            return next(filter(None, map(self._handle, events)), "")

    def _handle(self, event: Event) -> str:
        """Print what an event reports; returns the job's final status, empty if it has not ended."""
        status, code = event.job_status or "", event.error_code or ""
        if status.startswith(ENDED):
            return status
        if event.terminal:
            error = NvflareError(event.message or code, where=f"job {self._id}")
            error.code = code
            if code != TIMEOUT and code and not error.unreachable:
                raise error
            return ""
        self._printed.discard(_NO_ANSWER)
        progress = (event.metrics or {}).get(KEY)
        if progress is not None:
            self._progress_at = time.monotonic()
        if status == "RUNNING":
            if self._print_once("the job runs"):
                for site, reason in self.rejections().items():
                    self._print_once(f"  {site} rejected the job: {reason}")
            self._check_lost()
        elif time.monotonic() - self._reason_at > _REASON_S:
            self._reason_at = self._progress_at = time.monotonic()
            if schedule := self._meta().schedule:
                self._print_once(f"the job waits: {clean_reason(schedule[-1].split(': ', 1)[-1])}")
        self.print_rounds(_snapshot(progress))
        return ""

    def print_rounds(self, snapshot: Snapshot) -> None:
        """Print the rounds that have not been printed."""
        self._plan = self._plan if snapshot.planned is None else snapshot
        rows = [row for row in snapshot.rows if row.round not in self._rounds]
        for number in sorted({row.round for row in rows}):
            self._rounds.add(number)
            for line in round_lines(number, [row for row in rows if row.round == number], self._plan):
                self._print(line)

    def _print_once(self, line: str) -> bool:
        new = line not in self._printed
        if new:
            self._printed.add(line)
            self._print(line)
        return new

    def _check_lost(self) -> None:
        if time.monotonic() - self._progress_at > LOST_S:
            raise ProvisioningError(
                f"the server reports that it runs, but has sent no progress for {LOST_S / 60:.0f} min",
                where=f"job {self._id}",
                do="was the server restarted? then `fedfms resume JOB --job-id ID --out NEW`, and submit that",
            )  # fmt: skip

    def _meta(self) -> Reply:
        """What NVFLARE stores about the job; empty if the server does not answer."""
        try:
            return run_with_kit(self._kit, "job", "meta", self._id)
        except NvflareError as error:
            if error.unreachable:
                return Reply()
            raise

    def rejections(self) -> dict[str, str]:
        """Rejection reasons from deployment by site (or "server"); empty if the server does not answer."""
        found = (line.partition(": ") for line in self._meta().deployments or ())
        return {site: clean_reason(why.removeprefix(_PREFIX)) for site, colon, why in found if colon and why != "OK"}


def round_lines(number: int, rows: Iterable[SiteRow], plan: Snapshot) -> list[str]:
    """One line for a round, and one for each site whose update is missing or was rejected."""
    by_site = {row.site: row for row in rows}
    trained = [row for row in by_site.values() if not row.held_out]
    held_out = [row for row in by_site.values() if row.held_out]
    accepted = [row for row in trained if row.accepted]
    named = plan.sites or [row.site for row in trained]
    planned = "" if plan.planned is None else f"/{plan.planned}"
    dice = f"val dice {_mean_dice(trained)}" + (f", held out {_mean_dice(held_out)}" if held_out else "")
    up, down = (sum(getattr(row, key) or 0 for row in by_site.values()) for key in ("bytes_up", "bytes_down"))
    seconds = max((row.seconds or 0 for row in by_site.values()), default=0)
    lines = [
        f"round {number + 1}{planned}: {len(accepted)} of {len(named)} sites; {dice}; "
        f"up {size_text(up)}, down {size_text(down)}; {seconds:.0f} s"
    ]
    for row in sorted(trained, key=lambda row: row.site):
        if not row.accepted:
            lines.append(f"  {row.site} rejected: {row.reason or 'no reason given'}")
    absent = sorted({*named, *plan.held_out} - set(by_site))
    return lines + [f"  {site} did not answer" for site in absent]


def _mean_dice(rows: Iterable[SiteRow]) -> str:
    value = mean(row.dice for row in rows)
    return "-" if value is None else f"{value:.3f}"


def _snapshot(text: Any) -> Snapshot:
    """The progress that the server's recorder sent; empty if damaged: NVFLARE redacts what looks like a password."""
    try:
        return parse_bytes(Snapshot, str(text), ProvisioningError)
    except ProvisioningError:
        return Snapshot()
