"""Running a study with a lead's kit: a job staged, checked, submitted, watched and fetched, again if a process died."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfms.errors import ProvisioningError
from fedfms.flare.job import APP, brings_code
from fedfms.flare.job_validator import JobValidator
from fedfms.flare.nvflare_cli import MAX_JOB_MB, TIMEOUT, ConsoleError, ask
from fedfms.flare.progress import ENDED_FILE, Progress
from fedfms.flare.resume import OURS
from fedfms.flare.resume_job import described, next_job
from fedfms.flare.watch import COMPLETED, Tell, Watch, refusals
from fedfms.methods import training_sites
from fedfms.reporting.records import Records, ReportError, clean_reason, read_records

_DIED = ("FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABNORMAL")  # what a person stops is FINISHED:ABORTED
_DOWNLOAD_S = 3600.0


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
        run: the server's folder of the run, fetched; None where there is none, as of a job that never started.
        reason: why the server gave it up; empty if it did not, as when a process died.
        absent: sites that the study names and that took no part, or not to the end: why.
    """

    id: str
    status: str
    run: Path | None = None
    reason: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)

    def completed(self) -> Path:
        """The folder of a run that ended well.

        Raises:
            ProvisioningError: it did not.
        """
        if self.status == COMPLETED and self.run is not None:
            return self.run
        why = [self.reason, *(f"{site}: {text}" for site, text in self.absent.items())]
        what = f"it ended as {self.status.rpartition(':')[2]}"
        told = "; ".join(part for part in why if part)
        raise ProvisioningError(f"{what} ({told})" if told else what, where=f"job {self.id}", do="look at its log")

    @property
    def died(self) -> bool:
        """Whether it ended because a process died, at the server or a site; NVFLARE then ends it for all."""
        return self.status in _DIED and not self.reason


def stage(job: Path, folder: Path, max_mb: float = MAX_JOB_MB) -> Path:
    """A clean copy of a job: without what NVFLARE leaves in it, and without `app/custom` where that holds no code.

    NVFLARE takes a job with that folder for one that brings code, which a site's policy refuses.

    Raises:
        ProvisioningError: it is no job, holds links, or is larger than sites take; there is then no copy.
    """
    if not (job / "meta.json").is_file():
        raise ProvisioningError("this is not a job", where=job.name, do="name its folder")
    clean = shutil.ignore_patterns(".__nvfl_*", "__pycache__", "*.pyc")
    try:
        shutil.copytree(job, folder, ignore=clean, symlinks=True)
        custom = folder / APP / "custom"
        if custom.is_dir() and not custom.is_symlink() and not brings_code(folder):
            shutil.rmtree(custom)
        reason, _ = JobValidator(max_mb).validate(str(folder))
    except OSError:  # a pipe or a device, or no right to read
        reason = "it holds something that cannot be copied"
    if reason:
        shutil.rmtree(folder, ignore_errors=True)
        raise ProvisioningError(reason, where=job.name, do="sites would refuse it")
    return folder


def run_job(
    job: Path | None, kit: Path, out: Path, *, limit_s: float, watched: str = "", retries: int = 0,
    max_mb: float = MAX_JOB_MB, tell: Tell = lambda _: None, submitted: Tell = lambda _: None,
) -> Result:  # fmt: skip
    """Submit a job, watch it to its end, fetch its results into `out`; where a process died, go on by a new job.

    Args:
        job: its folder; None where `watched` is a job that was submitted before.
        limit_s: of all tries together; the job goes on after it.
        retries: new jobs at most, each from the last round that the server kept.
        tell: takes what happens, line by line.
        submitted: takes the id of each job that the server takes.

    Raises:
        StillRunningError: it did not end in time.
        ProvisioningError: it was refused, the server lost it, or its results cannot be fetched.
        StudyError: a process died, and the job is none of this package.
    """
    until = time.monotonic() + limit_s
    id_, source = watched, job
    with tempfile.TemporaryDirectory(prefix="fedfms-") as folder:
        for again in itertools.count(1):
            if source is not None and (again > 1 or not watched):
                id_ = send(source, kit, max_mb)
                submitted(id_)
            result = watch_job(id_, kit, out, limit_s=until - time.monotonic(), tell=tell)
            began = _began(result.run)
            source = source or (result.run if began else None)  # a run holds its study, as a job does
            if not result.died or again > retries or time.monotonic() > until:
                break
            if source is None:
                tell("a process of the job died, and nothing of it was fetched to go on from: submit the job's folder")
                break
            if began:
                name = described(source)[0].method if job is None else job.name
                source = next_job(source, id_, Path(folder) / f"{name}-{again}")
            here = _here(kit)
            tell(f"a process of the job died, and NVFLARE ended it for all; it goes on. Sites that are there: {here}")
    return result


def _began(run: Path | None) -> bool:
    """Whether there may be something to go on from: not where the server's process died before it had begun."""
    return run is None or (run / OURS / "run.json").is_file()


def _here(kit: Path) -> str:
    try:
        return ", ".join(registered(kit)) or "none"
    except ConsoleError:  # the server is busy with what it ended: that is no reason to give up
        return "not known"


def send(job: Path, kit: Path, max_mb: float = MAX_JOB_MB) -> str:
    """Submit a clean copy of a job; returns the id that the server gave it.

    Raises:
        ProvisioningError: it cannot be staged, the server refuses it, or does not answer in time.
    """
    job = job.resolve()
    with tempfile.TemporaryDirectory(prefix="fedfms-") as folder:
        staged = stage(job, Path(folder) / job.name, max_mb)
        try:
            return str(ask(kit, "job", "submit", "-j", str(staged))["job_id"])
        except ConsoleError as error:
            if error.code != TIMEOUT:
                raise
            do = "look whether the server has taken it all the same: `nvflare job list --startup-kit KIT`"
            raise ProvisioningError(error.what, do=do) from None


def watch_job(id_: str, kit: Path, out: Path, *, limit_s: float, tell: Tell = lambda _: None) -> Result:
    """Watch a job that was submitted to its end, and fetch its results into `out`.

    Raises:
        ProvisioningError: as `run_job`.
    """
    watch = Watch(kit, id_, tell)
    status = watch.wait(limit_s)
    meta = watch.meta()
    run = fetch(id_, kit, out, needed=status == COMPLETED)
    records = _records(run)
    if records is not None:  # rounds that ended after the server was last asked
        told = Progress()
        told.start(records.study)
        told.add(records.rounds)
        watch.rows(told.content())
    return Result(id_, status, run, _reason(run, meta), absent(meta, records))


def abort(id_: str, kit: Path) -> None:
    """Stop a job, for all sites."""
    ask(kit, "job", "abort", id_, "--force")


def registered(kit: Path) -> list[str]:
    """Names of the sites that the server knows now."""
    status = ask(kit, "system", "status")
    return [str(one.get("client_name") or one.get("name")) for one in status.get("clients", [])]


def fetch(id_: str, kit: Path, out: Path, *, needed: bool) -> Path | None:
    """A job's results in `out`, replacing what was fetched before; the server's folder of the run, if there is one.

    Raises:
        ProvisioningError: they cannot be fetched, and are `needed`.
    """
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        ask(kit, "job", "download", id_, "-o", str(out), "--force", limit_s=_DOWNLOAD_S)
    except ConsoleError as error:
        if needed:
            do = "`fedfms submit --watch` fetches them again"
            raise ProvisioningError(f"the results are not here ({error.what})", where=f"job {id_}", do=do) from error
        return None
    run = out / id_ / "workspace"
    return run if run.is_dir() else None


def absent(meta: Mapping[str, Any], records: Records | None) -> dict[str, str]:
    """Sites that took no part in a job, or not to its end, and why: by what NVFLARE and the server's recorder kept."""
    refused = {who: why for who, why in refusals(meta).items() if who != "server"}
    found = {who: f"refused the job ({why})" for who, why in refused.items()}
    if records is None or not records.rounds:
        return found
    last = max(row["round"] for row in records.rounds)
    for site in sorted({*training_sites(records.study), *records.study.held_out} - set(found)):
        rows = [row for row in records.rounds if row["site"] == site]
        good = [row for row in rows if row["accepted"] or row["held_out"]]
        if not rows:
            found[site] = "never answered"
        elif not good:
            found[site] = f"none of its updates was accepted ({rows[-1]['reason'] or 'no reason given'})"
        elif (left := max(row["round"] for row in rows)) < last:
            found[site] = f"left after round {left + 1}"
    return found


def _records(run: Path | None) -> Records | None:
    with suppress(ReportError):
        return None if run is None else read_records(run)
    return None


def _reason(run: Path | None, meta: Mapping[str, Any]) -> str:
    """Why the server did not run it, or gave it up, as its recorder wrote it down; empty if neither is so."""
    if run is None:
        return refusals(meta).get("server", "")
    with suppress(OSError, ValueError, AttributeError):
        return clean_reason(json.loads((run / ENDED_FILE).read_text(encoding="utf-8")).get("reason"))
    return ""
