"""`fedfms report`: the report of a run on the terminal; the exit code says whether the run is valid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedfms.cli.options import Commands, add_command

if TYPE_CHECKING:
    from fedfms.reporting import Report


def add_commands(commands: Commands) -> None:
    """Add `fedfms report`."""
    report = add_command(
        commands, "report", _report, example="fedfms report workspace",
        help="write table, curves and results.json of a run again; exit code 1 if the run is not valid",
    )  # fmt: skip
    report.add_argument("workspace", type=Path, help="a simulator's workspace, or a run's folder")
    report.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: in the run's folder)")


def _report(args: argparse.Namespace) -> int:
    from fedfms.reporting import make_report

    return show(make_report(args.workspace, args.out))


def finished(workspace: Path) -> Report | None:
    """The report of a simulator's complete run; None if it has not started, or lacks rounds or the final scores."""
    from fedfms.flare.simulator import has_checkpoint
    from fedfms.reporting import ReportError, make_report

    try:
        report = make_report(workspace)
    except ReportError:  # not started, or interrupted before its first record
        return None
    return report if report.results["complete"] and not has_checkpoint(workspace) else None


def show(report: Report) -> int:
    """Print a report and the paths of its files; 0 if its run is valid, else 1."""
    console = Console()
    console.print(report.table)
    console.print(*report.paths, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return 0 if report.results["valid"] else 1
