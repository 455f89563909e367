"""`fedfms submit`: submit a job with a lead's kit, watch its rounds, and download its results."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedfms.cli.options import Commands, add_command, add_shared, at_least, positive_float
from fedfms.errors import ProvisioningError, StudyError

if TYPE_CHECKING:
    from fedfms.flare.submit import JobResult

_DESCRIPTION = """\
Run a job across sites with a lead's kit. One of:

  fedfms submit JOB --kit KIT --out DIR             check, submit, watch and download a job
  fedfms submit --watch JOBID --kit KIT --out DIR   watch a submitted job, or download its results
  fedfms submit --abort JOBID --kit KIT             stop a job at all sites

Exit code: 0 success; 1 an error; 3 the run is not valid, or a site did not take part until the end; 130 Ctrl-C, after
which the job continues.
"""
_NOT_VALID, _INTERRUPTED = 3, 130
_HOURS, _MAX_HOURS = 24.0, 24.0 * 365


def add_commands(commands: Commands) -> None:
    """Add `fedfms submit`."""
    submit = add_command(
        commands, "submit", _submit, help="run a job across sites with a lead's kit: submit, watch, download",
        description=_DESCRIPTION, example="fedfms submit jobs/fedmsa --kit LEADKIT --out results --retries 2",
    )  # fmt: skip
    submit.add_argument("job", nargs="?", type=Path, metavar="JOB", help="the job folder")
    submit.add_argument("--watch", type=_id, metavar="JOBID", help="watch this job and download its results")
    submit.add_argument("--abort", type=_id, metavar="JOBID", help="stop this job")
    add_shared(submit, "--kit")
    submit.add_argument("--out", type=Path, metavar="DIR", help="results go to DIR/JOBID")
    submit.add_argument(
        "--limit", type=_hours, default=_HOURS, metavar="HOURS",
        help=f"stop watching after this time (default: {_HOURS:.0f}); the job continues",
    )  # fmt: skip
    submit.add_argument(
        "--retries", type=at_least(0), default=0, metavar="N",
        help="maximum number of new jobs that resume the run, each after a process of the job died (default: 0)",
    )  # fmt: skip


def _id(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z-]{3,63}", text):
        raise argparse.ArgumentTypeError("must be the id of a job, as printed when it was submitted")
    return text


def _hours(text: str) -> float:
    if (hours := positive_float(text)) > _MAX_HOURS:
        raise argparse.ArgumentTypeError(f"must be {_MAX_HOURS:.0f} at most")
    return hours


def _submit(args: argparse.Namespace) -> int:
    if sum(one is not None for one in (args.job, args.watch, args.abort)) != 1 or (not args.abort and not args.out):
        forms = "JOB --out DIR, --watch JOBID --out DIR, or --abort JOBID"
        raise StudyError("exactly one of three forms is needed", where="fedfms submit", do=forms)
    kit = args.kit.resolve()
    if not (kit / "startup" / "fed_admin.json").is_file():
        raise ProvisioningError("this is not a person's kit", where="--kit", do="name the folder of an opened one")
    if args.abort:
        from fedfms.flare.submit import abort

        abort(args.abort, kit)
        _print("abort requested")
        return 0
    ids = [args.watch] if args.watch else []
    try:
        return _show(_run(args, kit, ids))
    except KeyboardInterrupt:
        _print("interrupted")
        _print_how_to_continue(args, ids)
        return _INTERRUPTED


def _print(line: str) -> None:
    print(line, flush=True)


def _run(args: argparse.Namespace, kit: Path, ids: list[str]) -> JobResult:
    """The result of the job; its id is appended to `ids` as soon as it is known."""
    from fedfms.flare.submit import run_job
    from fedfms.flare.watch import StillRunningError

    def on_submit(id_: str) -> None:
        ids.append(id_)
        _print(f"submitted: {id_}")

    args.out.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return run_job(
            args.job, kit, args.out.resolve(), job_id=args.watch or "", timeout_s=args.limit * 3600,
            retries=args.retries, print_line=_print, on_submit=on_submit,
        )  # fmt: skip
    except StillRunningError:
        _print_how_to_continue(args, ids)
        raise


def _print_how_to_continue(args: argparse.Namespace, ids: list[str]) -> None:
    kit, out = shlex.quote(str(args.kit)), shlex.quote(str(args.out))
    if not ids:
        _print(f"unknown whether the job was submitted; list the jobs: nvflare job list --startup-kit {kit}")
        return
    retries = f" --retries {args.retries}" if args.retries else ""
    _print("the job continues")
    _print(f"  watch it again:  fedfms submit --watch {ids[-1]} --kit {kit} --out {out}{retries}")
    _print(f"  stop it:         fedfms submit --abort {ids[-1]} --kit {kit}")


def _show(result: JobResult) -> int:
    """Print the report of a run, as far as it exists; returns the exit code."""
    from fedfms.reporting import ReportError, make_report

    valid = True
    if result.run is not None:
        try:
            report = make_report(result.run)
            Console(soft_wrap=True).print(report.table)
            valid = report.results["valid"]
        except ReportError as error:
            valid = False
            _print(f"no table: {error.line()}")
        _print(str(result.run))
    result.completed()
    for site, reason in result.absent.items():
        print(f"fedfms: {site}: {reason}", file=sys.stderr)
    return 0 if valid and not result.absent else _NOT_VALID
