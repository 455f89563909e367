"""A run's report on the terminal, and whether the run is valid as the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from fedfms.reporting import Report


def show(report: Report) -> int:
    """Print a report and where it lies; 0 if its run is valid, else 1."""
    console = Console()
    console.print(report.table)
    console.print(*report.paths, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return 0 if report.results["valid"] else 1
