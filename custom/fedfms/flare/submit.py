"""Run a study with a lead's kit: check, submit, watch and download a job; resume it if a process died."""

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedfms.errors import ProvisioningError
from fedfms.flare.job import APP, brings_code
from fedfms.flare.job_validator import JobValidator
from fedfms.flare.nvflare_cli import MAX_JOB_MB, TIMEOUT, NvflareError, run_with_kit
from fedfms.flare.progress import ENDED_FILE, Progress
from fedfms.flare.resume import RUN_SUBFOLDER
from fedfms.flare.resume_job import next_job, read_job
from fedfms.flare.watch import COMPLETED, JobWatcher, PrintLine
from fedfms.methods import training_sites
from fedfms.reporting.records import Records, ReportError, clean_reason, read_records

_PROCESS_DIED = ("FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABNORMAL")  # FINISHED:ABORTED: a person stopped it
_DOWNLOAD_S = 3600.0


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        run: the server's folder of the run, downloaded; None if there is none, for instance if the job never started.
        reason: why the server ended it early; empty if it did not, for instance if a process died.
        absent: sites that the study names and that did not take part until the end: the reason for each.
    """

    id: str
    status: str
    run: Path | None = None
    reason: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)

    def completed(self) -> Path:
        """The folder of a run that completed.

        Raises:
            ProvisioningError: it did not complete.
        """
        if self.status == COMPLETED and self.run is not None:
            return self.run
        why = "; ".join(filter(None, [self.reason, *(f"{site}: {text}" for site, text in self.absent.items())]))
        what = f"it ended as {self.status.rpartition(':')[2]}" + (f" ({why})" if why else "")
        raise ProvisioningError(what, where=f"job {self.id}", do="look at its log")

    @property
    def process_died(self) -> bool:
        """Whether it ended because a process died at the server or a site; NVFLARE then ends it for all."""
        return self.status in _PROCESS_DIED and not self.reason


def stage(job: Path, folder: Path, max_mb: float = MAX_JOB_MB) -> Path:
    """Copy a job without NVFLARE's signatures, caches, and an `app/custom` without code; returns the copy.

    NVFLARE treats a job with an `app/custom` folder as one that brings code, which a site's policy rejects.

    Raises:
        ProvisioningError: it is not a job, holds links, or is larger than sites accept; no copy remains.
    """
    if not (job / "meta.json").is_file():
        raise ProvisioningError("this is not a job", where=job.name, do="name its folder")
    ignore = shutil.ignore_patterns(".__nvfl_*", "__pycache__", "*.pyc")
    try:
        shutil.copytree(job, folder, ignore=ignore, symlinks=True)
        custom = folder / APP / "custom"
        if custom.is_dir() and not custom.is_symlink() and not brings_code(folder):
            shutil.rmtree(custom)
        reason, _ = JobValidator(max_mb).validate(str(folder))
    except OSError:  # a pipe or a device, or an unreadable file
        reason = "it holds something that cannot be copied"
    if reason:
        shutil.rmtree(folder, ignore_errors=True)
        raise ProvisioningError(reason, where=job.name, do="sites would reject it")
    return folder


def run_job(
    job: Path | None, kit: Path, out: Path, *, timeout_s: float, job_id: str = "", retries: int = 0,
    max_mb: float = MAX_JOB_MB, print_line: PrintLine = lambda _: None, on_submit: PrintLine = lambda _: None,
) -> JobResult:  # fmt: skip
    """Submit a job, watch it to its end, and download its results to `out`; resume it by a new job if a process died.

    Args:
        job: its folder; None to watch `job_id`, a job that was submitted before.
        timeout_s: limit on all attempts together; the job continues to run after it.
        retries: maximum number of new jobs, each of which resumes from the last round that the server saved.
        print_line: receives each line of output.
        on_submit: receives the id of each submitted job.

    Raises:
        StillRunningError: it did not end within the limit.
        ProvisioningError: it was rejected, the server lost it, or its results cannot be downloaded.
        StudyError: a process died, and the job is not one of this package.
    """
    until = time.monotonic() + timeout_s
    id_, source = job_id, job
    with tempfile.TemporaryDirectory(prefix="fedfms-") as folder:
        for attempt in itertools.count(1):
            if source is not None and (attempt > 1 or not job_id):
                id_ = submit_job(source, kit, max_mb)
                on_submit(id_)
            result = watch_job(id_, kit, out, timeout_s=until - time.monotonic(), print_line=print_line)
            started = _started(result.run)
            source = source or (result.run if started else None)  # a run holds its study, as a job does
            if not result.process_died or attempt > retries or time.monotonic() > until:
                break
            if source is None:
                print_line("a process of the job died, and no results to resume from were downloaded; submit it again")
                break
            if started:
                name = read_job(source)[0].method if job is None else job.name
                source = next_job(source, id_, Path(folder) / f"{name}-{attempt}")
            here = _connected_sites(kit)
            print_line(f"a process of the job died, and NVFLARE ended the job; resuming. Connected sites: {here}")
    return result


def _started(run: Path | None) -> bool:
    """Whether a job may be resumed; not if the server's process died before it started the run."""
    return run is None or (run / RUN_SUBFOLDER / "run.json").is_file()


def _connected_sites(kit: Path) -> str:
    try:
        return ", ".join(registered_sites(kit)) or "none"
    except NvflareError:  # the server may be busy with the job that ended: no reason to give up
        return "unknown"


def submit_job(job: Path, kit: Path, max_mb: float = MAX_JOB_MB) -> str:
    """Submit a staged copy of a job; returns its id.

    Raises:
        ProvisioningError: it cannot be staged, the server rejects it, or does not answer in time.
    """
    job = job.resolve()
    with tempfile.TemporaryDirectory(prefix="fedfms-") as folder:
        staged = stage(job, Path(folder) / job.name, max_mb)
        try:
            return run_with_kit(kit, "job", "submit", "-j", str(staged)).job_id
        except NvflareError as error:
            if error.code != TIMEOUT:
                raise
            do = "check whether the server has accepted it nevertheless: `nvflare job list --startup-kit KIT`"
            raise ProvisioningError(error.what, do=do) from None


def watch_job(id_: str, kit: Path, out: Path, *, timeout_s: float, print_line: PrintLine = lambda _: None) -> JobResult:
    """Watch a submitted job to its end, and download its results to `out`."""
    watcher = JobWatcher(kit, id_, print_line)
    status = watcher.wait(timeout_s)
    rejections = watcher.rejections()
    run = download(id_, kit, out, required=status == COMPLETED)
    records = _records(run)
    if records is not None:  # rounds that ended after the last answer of the server
        progress = Progress()
        progress.start(records.study)
        progress.add(records.rounds)
        watcher.print_rounds(progress.snapshot())
    return JobResult(id_, status, run, _reason(run, rejections), absent_sites(rejections, records))


def abort(id_: str, kit: Path) -> None:
    """Stop a job at the server and all sites."""
    run_with_kit(kit, "job", "abort", id_, "--force")


def registered_sites(kit: Path) -> list[str]:
    """Names of the sites that are registered at the server."""
    return [str(client.get("client_name")) for client in run_with_kit(kit, "system", "status").clients or ()]


def download(id_: str, kit: Path, out: Path, *, required: bool) -> Path | None:
    """Download a job's results to `out`, replacing an earlier download; returns the server's folder of the run, if any.

    Raises:
        ProvisioningError: they cannot be downloaded, and are `required`.
    """
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        run_with_kit(kit, "job", "download", id_, "-o", str(out), "--force", timeout_s=_DOWNLOAD_S)
    except NvflareError as error:
        if required:
            do = "`fedfms submit --watch` downloads them again"
            what = f"the results cannot be downloaded ({error.what})"
            raise ProvisioningError(what, where=f"job {id_}", do=do) from error
        return None
    run = out / id_ / "workspace"
    return run if run.is_dir() else None


def absent_sites(rejections: Mapping[str, str], records: Records | None) -> dict[str, str]:
    """Why a site did not take part in a job until its end, by site; `rejections` are of the job as a whole."""
    found = {site: f"rejected the job ({why})" for site, why in rejections.items() if site != "server"}
    if records is None or not records.rounds:
        return found
    last = max(row["round"] for row in records.rounds)
    for site in sorted({*training_sites(records.study), *records.study.held_out} - set(found)):
        rows = [row for row in records.rounds if row["site"] == site]
        if not rows:
            found[site] = "never answered"
        elif not any(row["accepted"] or row["held_out"] for row in rows):
            found[site] = f"none of its updates was accepted ({rows[-1]['reason'] or 'no reason given'})"
        elif (left := max(row["round"] for row in rows)) < last:
            found[site] = f"left after round {left + 1}"
    return found


def _records(run: Path | None) -> Records | None:
    with suppress(ReportError):
        return None if run is None else read_records(run)
    return None


def _reason(run: Path | None, rejections: Mapping[str, str]) -> str:
    """Why the server did not start the job or ended it early, as recorded; empty if it did neither."""
    if run is None:
        return rejections.get("server", "")
    with suppress(OSError, ValueError, AttributeError):
        return clean_reason(json.loads((run / ENDED_FILE).read_text(encoding="utf-8")).get("reason"))
    return ""
