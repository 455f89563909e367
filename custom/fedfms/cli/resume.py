"""`fedfms resume`: go on with a run that was cut, from the last round that it finished."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fedfms.cli.files import positive
from fedfms.errors import StudyError

_EXAMPLES = """\
examples:
  fedfms resume workspace                                      a simulator's run: what is left of it, there
  fedfms resume jobs/fedmsa --job-id ID --out jobs/fedmsa-on   a federation's: a new job, to submit as the first was
  fedfms resume SERVER/ID --out jobs/fedmsa-on                 the same, of the run's folder at the server
  fedfms resume OUT/ID/workspace --out jobs/fedmsa-on          the same, of the run as it was fetched

A table that was cut goes on by its own command; this tells which. A new job finds what the server and the sites have
kept by the ids of the jobs before it; what a site lost, it begins anew.
"""


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    resume = commands.add_parser(
        "resume", help="go on with a run that was cut, from the last round that it finished", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    resume.add_argument("folder", metavar="RUN", type=Path, help="a simulator's workspace, a table, a job, or a run")
    resume.add_argument("--threads", type=positive, help="of a simulator: sites at once (default: as many as cores)")
    resume.add_argument("--job-id", metavar="ID", help="of a federation: the id that NVFLARE gave the job that was cut")
    resume.add_argument("--out", type=Path, help="of a federation: the folder of the new job")
    resume.set_defaults(run=_resume)


def _resume(args: argparse.Namespace) -> str | int:
    from fedfms.flare.resume_job import next_job
    from fedfms.flare.simulator_runs import is_simulated

    if (table := args.folder / "table.json").is_file():
        return f"a table goes on by its own command, as it was typed: {_command(table)}"
    if is_simulated(args.folder):
        return _simulator(args)
    if not args.folder.is_dir():
        raise StudyError(f"there is no folder {args.folder}", where="resume", do="name a run's, a table's or a job's")
    if args.out is None:
        raise StudyError("a federation goes on by a new job", where=args.folder.name, do="name its folder: --out")
    out = next_job(args.folder, args.job_id or _id_of(args.folder), args.out)
    return f"{out}: submit it as the first; it begins after the last round that the server has kept"


def _simulator(args: argparse.Namespace) -> int:
    from fedfms.cli.report import show
    from fedfms.flare.simulator_runs import is_kept, resume_simulated
    from fedfms.reporting import ReportError, make_report

    try:
        report = make_report(args.folder)
    except ReportError:  # cut before it had anything to report
        pass
    else:
        if report.results["complete"] and not is_kept(args.folder):
            raise StudyError("the run has come to its end", where=args.folder.name, do="`fedfms report` shows it")
    resume_simulated(args.folder, args.threads)
    return show(make_report(args.folder))


def _command(table: Path) -> str:
    try:
        return str(json.loads(table.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, LookupError, TypeError):
        raise StudyError("the table's file is damaged", where=table.parent.name, do="type its command again") from None


def _id_of(run: Path) -> str:
    """The id of a run: its folder's name at a server, and of one that was fetched, DOWNLOAD/ID/workspace, the name of
    the folder that holds it; a job's folder has none.
    """
    if not any(run.glob("app_*")):
        raise StudyError("this is a job, whose id is not known", where=run.name, do="name it: --job-id")
    folder = run.resolve()
    return folder.parent.name if folder.name == "workspace" else folder.name
