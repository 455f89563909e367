"""Running a study with an admin's kit: a job staged, checked, submitted, watched and fetched."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedfms.errors import ProvisioningError
from fedfms.flare.job import APP
from fedfms.flare.jobcheck import SmallJobs
from provisioning.project import MAX_JOB_MB
from provisioning.tool import nvflare


def ask(kit: Path, *command: str, limit_s: float = 120) -> dict[str, Any]:
    """An `nvflare` command with an admin's kit."""
    return nvflare(*command, "--startup-kit", str(kit), folder=kit, limit_s=limit_s)


def stage(job: Path, folder: Path, max_mb: float = MAX_JOB_MB) -> Path:
    """A clean copy of a job: without what NVFLARE leaves in it, and without `app/custom` where that holds no code.

    NVFLARE takes a job with that folder for one that brings code, which a site's policy refuses.

    Raises:
        ProvisioningError: it is no job, or larger than sites take.
    """
    if not (job / "meta.json").is_file():
        raise ProvisioningError("this is not a job", where=job.name, do="name its folder")
    clean = shutil.ignore_patterns(".__nvfl_*", "__pycache__", "*.pyc")
    shutil.copytree(job, folder, ignore=clean, symlinks=True)
    custom = folder / APP / "custom"
    if custom.is_dir() and {path.name for path in custom.iterdir()} <= {"README.txt"}:
        shutil.rmtree(custom)
    reason, _ = SmallJobs(max_mb).validate(str(folder))
    if reason:
        raise ProvisioningError(reason, where=job.name, do="sites would refuse it")
    return folder


def submit(job: Path, kit: Path, work: Path, limit_s: float, max_mb: float = MAX_JOB_MB) -> Path:
    """Submit a job, wait for its end, fetch its results; returns the server's folder of the run.

    Raises:
        ProvisioningError: it was refused, did not end well, or not in time.
    """
    staged = stage(job, work / job.name, max_mb)
    id_ = str(ask(kit, "job", "submit", "-j", str(staged))["job_id"])
    try:
        ended = ask(kit, "job", "wait", id_, "--timeout", f"{limit_s:.0f}", "--interval", "1", limit_s=limit_s + 60)
    except ProvisioningError:
        with suppress(ProvisioningError):
            ask(kit, "job", "abort", id_)
        raise
    status = str(ended.get("status", ""))
    if not status.endswith("COMPLETED"):
        raise ProvisioningError(f"it ended as {status or 'unknown'}", where=job.name, do="look at the server's log")
    ask(kit, "job", "download", id_, "-o", str(work / f"{job.name}-results"))
    return work / f"{job.name}-results" / id_ / "workspace"
