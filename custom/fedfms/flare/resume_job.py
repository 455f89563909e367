"""The job that goes on from one that was cut: of the same study, and naming it by its id."""

from __future__ import annotations

import json
from pathlib import Path

from fedfms.errors import StudyError
from fedfms.flare.job import build_job
from fedfms.flare.resume import job_ids
from fedfms.study import Study

_CONFIG = "app*/config/config_fed_server.json"


def described(folder: Path) -> tuple[Study, tuple[str, ...]]:
    """The study of a job's folder, or of a run's at the server, and the ids of the jobs that it goes on from.

    Raises:
        StudyError: it is neither, or of another version.
    """
    found = sorted(folder.glob(_CONFIG))
    try:
        parts = json.loads(found[0].read_text(encoding="utf-8"))["components"]
        (args,) = (part["args"] for part in parts if part["id"] == "persistor")
        return Study.from_dict(args["study"]), job_ids(args.get("resume", ()))
    except (OSError, ValueError, LookupError, TypeError):
        raise StudyError("this is no job of this package", where=folder.name, do="name its folder") from None


def next_job(job: Path, job_id: str, out: Path) -> Path:
    """Write to `out` the job that goes on from the one that was sent from the folder `job` and is called `job_id`.

    Raises:
        StudyError: `job` is none, `job_id` is none, or `out` cannot be written.
    """
    study, before = described(job)
    bundled = any(job.glob("app*/custom/fedfms"))
    return build_job(study, out, bundle_code=bundled, resume=[*(one for one in before if one != job_id), job_id])
