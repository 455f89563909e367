"""`fedfms resume`: resume an interrupted run after the last round that it finished."""

import argparse
from pathlib import Path

from fedfms.cli.options import Commands, add_command, positive
from fedfms.errors import StudyError

_DESCRIPTION = """\
Resume an interrupted run after the last round that it finished. RUN is one of:

  a simulator's workspace   the remaining rounds are run there
  a job folder              with --job-id: a new job is written to --out; submit it like the first
  a run at the server       SERVER/ID, or OUT/ID/workspace as it was downloaded: the same, without --job-id
  a table's folder          prints the command that resumes the table

A new job finds the state of server and sites by the ids of the earlier jobs. A site that has lost its state starts from
its initial state.
"""


def add_commands(commands: Commands) -> None:
    """Add `fedfms resume`."""
    resume = add_command(
        commands, "resume", _resume, help="resume an interrupted run after the last round that it finished",
        description=_DESCRIPTION, example="fedfms resume jobs/fedmsa --job-id ID --out jobs/fedmsa-resumed",
    )  # fmt: skip
    resume.add_argument("folder", metavar="RUN", type=Path, help="a simulator's workspace, a job, a run or a table")
    resume.add_argument("--threads", type=positive, metavar="N", help="simulator: sites in parallel (default: cores)")
    resume.add_argument("--job-id", metavar="ID", help="federation: NVFLARE's id of the interrupted job")
    resume.add_argument("--out", type=Path, metavar="DIR", help="federation: the folder for the new job")


def _resume(args: argparse.Namespace) -> str | int:
    from fedfms.flare.resume_job import next_job
    from fedfms.flare.simulator_runs import is_simulated, run_workspace

    if (args.folder / "table.json").is_file():
        from fedfms.experiments.folder import read_record

        return f"resume a table with its own command: {read_record(args.folder).command}"
    if is_simulated(args.folder):
        return _simulator(args)
    if is_simulated(run_workspace(args.folder)):
        do = "resume it with the command that started it"
        raise StudyError("this is a folder of `fedfms run`", where=args.folder.name, do=do)
    if not args.folder.is_dir():
        raise StudyError(f"no folder {args.folder}", where="resume", do="name a run's, a table's or a job's")
    if args.out is None:
        what = "a federation is resumed with a new job"
        raise StudyError(what, where=args.folder.name, do="name a folder for it: --out")
    out = next_job(args.folder, args.job_id or _id_of(args.folder), args.out)
    return f"{out}: submit it like the first job; it starts after the last round that the server has stored"


def _simulator(args: argparse.Namespace) -> int:
    from fedfms.cli.report import finished, show
    from fedfms.flare.simulator_runs import resume_simulated
    from fedfms.reporting import make_report

    if finished(args.folder) is not None:
        raise StudyError("the run is complete", where=args.folder.name, do="`fedfms report` shows it")
    resume_simulated(args.folder, args.threads)
    return show(make_report(args.folder))


def _id_of(run: Path) -> str:
    """NVFLARE's id of a run: the name of its folder at a server, of DOWNLOAD/ID/workspace that of its parent. A job's
    folder has none.
    """
    if not any(run.glob("app_*")):
        raise StudyError("this is a job, whose id is unknown", where=run.name, do="name it: --job-id")
    folder = run.resolve()
    return folder.parent.name if folder.name == "workspace" else folder.name
