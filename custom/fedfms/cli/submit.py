"""`fedfms submit`: a job sent with a lead's kit, watched round by round, and its results fetched."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedfms.errors import ProvisioningError, StudyError

if TYPE_CHECKING:
    from fedfms.flare.submit import Result

_EXAMPLES = """\
examples:
  fedfms submit jobs/fedmsa --kit LEADKIT --out results            sent, watched, fetched
  fedfms submit jobs/fedmsa --kit LEADKIT --out results --retries 2
  fedfms submit --watch JOBID --kit LEADKIT --out results          a job that goes on, or has ended; takes --retries
  fedfms submit --abort JOBID --kit LEADKIT                        stop it, for all sites

exit codes: 0 done; 1 a fault, told in one line; 3 done, but the run is not valid, or a site took no part or not to the
end; 130 Ctrl-C, after which the job goes on
"""
_ABSENT, _INTERRUPTED = 3, 130
_HOURS = 24.0


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    submit = commands.add_parser(
        "submit", help="run a job across sites with a lead's kit: checked, sent, watched round by round, fetched",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    submit.add_argument("job", nargs="?", type=Path, help="the job folder, as the simulator runs it")
    submit.add_argument("--watch", type=_id, metavar="JOBID", help="watch a job that was submitted, fetch its results")
    submit.add_argument("--abort", type=_id, metavar="JOBID", help="stop this job")
    submit.add_argument("--kit", required=True, type=Path, metavar="DIR", help="of a lead or project_admin, opened")
    submit.add_argument("--out", type=Path, metavar="DIR", help="where the results go, in a folder of the job's id")
    submit.add_argument(
        "--limit", type=_more_than_none, default=_HOURS, metavar="HOURS",
        help=f"stop watching after so long (default: {_HOURS:.0f}); the job goes on",
    )  # fmt: skip
    submit.add_argument(
        "--retries", type=int, default=0, metavar="N",
        help="where a process of the job died, which ends it for all: go on by a new job, so many times at most",
    )  # fmt: skip
    submit.set_defaults(run=_submit)


def _id(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z-]{3,63}", text):
        raise argparse.ArgumentTypeError("must be the id of a job, as it was told when it was submitted")
    return text


def _more_than_none(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= 24 * 365:
        raise argparse.ArgumentTypeError("must be a number of hours, more than 0")
    return hours


def _submit(args: argparse.Namespace) -> int:
    if sum(one is not None for one in (args.job, args.watch, args.abort)) != 1 or (not args.abort and not args.out):
        ways = "JOB --out DIR, --watch JOBID --out DIR, or --abort JOBID"
        raise StudyError("one of three ways is needed", where="fedfms submit", do=ways)
    kit = args.kit.resolve()
    if not (kit / "startup" / "fed_admin.json").is_file():
        raise ProvisioningError("this is not a person's kit", where="--kit", do="name the folder of one that is opened")
    console, ids = Console(soft_wrap=True), [args.watch] if args.watch else []

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if args.abort:
        from fedfms.flare.submit import abort

        abort(args.abort, kit)
        tell("it is told to stop")
        return 0
    try:
        return _shown(_ended(args, kit, ids, tell), console)
    except KeyboardInterrupt:
        tell("interrupted")
        _how_to_go_on(args, ids, tell)
        return _INTERRUPTED


def _ended(args: argparse.Namespace, kit: Path, ids: list[str], tell: Any) -> Result:
    """How the job ended; its id is added to `ids` as soon as there is one."""
    from fedfms.flare.submit import run_job
    from fedfms.flare.watch import StillRunningError

    def submitted(id_: str) -> None:
        ids.append(id_)
        tell(f"submitted: {id_}")

    args.out.mkdir(parents=True, exist_ok=True, mode=0o700)
    out, limit_s = args.out.resolve(), args.limit * 3600
    try:
        return run_job(
            args.job, kit, out, watched=args.watch or "", limit_s=limit_s, retries=args.retries, tell=tell,
            submitted=submitted,
        )  # fmt: skip
    except StillRunningError:
        _how_to_go_on(args, ids, tell)
        raise


def _how_to_go_on(args: argparse.Namespace, ids: list[str], tell: Any) -> None:
    kit, out = shlex.quote(str(args.kit)), shlex.quote(str(args.out))
    if not ids:
        tell(f"it is not known whether the job was submitted: nvflare job list --startup-kit {kit}")
        return
    tell("the job goes on")
    retries = f" --retries {args.retries}" if args.retries else ""
    tell(f"  watch it again:  fedfms submit --watch {ids[-1]} --kit {kit} --out {out}{retries}")
    tell(f"  stop it:         fedfms submit --abort {ids[-1]} --kit {kit}")


def _shown(result: Result, console: Console) -> int:
    """Show what there is of a run; the exit code."""
    from fedfms.reporting import ReportError, make_report

    valid = True
    if result.run is not None:
        try:
            report = make_report(result.run)
            console.print(report.table)
            valid = report.results["valid"]
        except ReportError as error:
            valid = False
            console.print(f"no table: {error.line()}", markup=False, highlight=False)
        console.print(str(result.run), markup=False, highlight=False)
    result.completed()
    for site, why in result.absent.items():
        Console(file=sys.stderr, soft_wrap=True).print(f"fedfms: {site}: {why}", markup=False, highlight=False)
    return 0 if valid and not result.absent else _ABSENT
