"""The job that resumes an interrupted one: the same study, and the id of the earlier job."""

from pathlib import Path

from fedfms.errors import StudyError
from fedfms.flare.job import build_job
from fedfms.flare.resume import job_ids
from fedfms.schema import read_json
from fedfms.study import Study

_CONFIG = "app*/config/config_fed_server.json"


def read_job(folder: Path) -> tuple[Study, tuple[str, ...]]:
    """The study of a job's folder, or of a run's folder at the server, and the ids of the jobs that it resumes.

    Raises:
        StudyError: it is neither, or of another version.
    """
    found = sorted(folder.glob(_CONFIG))
    try:
        components = read_json(found[0], StudyError)["components"]
        (args,) = (component["args"] for component in components if component["id"] == "persistor")
        study, resumed = dict(args["study"]), args.get("resume", ())
    except (StudyError, ValueError, LookupError, TypeError):
        raise StudyError("this is not a job of this package", where=folder.name, do="name its folder") from None
    return Study.from_dict(study), job_ids(resumed)


def next_job(job: Path, job_id: str, out: Path) -> Path:
    """Write to `out` the job that resumes `job`, which NVFLARE ran as `job_id`; returns `out`.

    Raises:
        StudyError: `job` is not a job, `job_id` is not an id, or `out` cannot be written.
    """
    study, earlier = read_job(job)
    bundled = any(job.glob("app*/custom/fedfms"))
    return build_job(study, out, bundle_code=bundled, resume=[*(one for one in earlier if one != job_id), job_id])
