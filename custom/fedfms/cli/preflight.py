"""`fedfms preflight`: checks of a site's kit, machine, data and connection before a study."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedfms.cli.options import Commands, add_command, add_shared, positive_float
from fedfms.errors import ProvisioningError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedfms.flare.preflight import Row

_COLOURS = {"pass": "green", "warn": "yellow", "FAIL": "red"}
_WIDTH = 140  # if the output is not a terminal


def add_commands(commands: Commands) -> None:
    """Add `fedfms preflight`."""
    parser = add_command(
        commands, "preflight", _preflight, example="fedfms preflight --kit KIT --job fedmsa --full --mbit 50",
        help="at a site, before a study: check kit, package, server, disk, data, weights, memory, connection",
    )  # fmt: skip
    add_shared(parser, "--kit")
    parser.add_argument("--job", type=Path, metavar="DIR", help="the job that the lead will submit")
    parser.add_argument("--full", action="store_true", help="compare the hash of every image, not of a sample")
    parser.add_argument("--mbit", type=positive_float, metavar="N", help="known speed of the connection in Mbit/s")
    parser.add_argument(
        "--timeout-s", type=positive_float, default=10.0, metavar="S", help="per connection; default 10"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _preflight(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fedfms.flare.preflight import Context, failed, preflight

    for folder, what in ((args.kit, "kit"), (args.job, "job")):
        if folder is not None and not folder.is_dir():
            raise ProvisioningError(f"--{what} is not a folder", where="preflight", do=f"name the {what}'s, opened")
    kit = args.kit.resolve()  # a kit's JSON contains its absolute path
    context, rows = Context(kit, args.job, args.full, args.mbit, args.timeout_s), []
    with Console(stderr=True).status("") as status:
        for row in preflight(context):
            rows.append(row)
            status.update(f"{row.check}: {row.state}")
    if args.json:
        print(json.dumps({"ok": not failed(rows), "checks": [asdict(row) for row in rows]}, indent=1))
    else:
        _console().print(table(rows))
    return int(bool(failed(rows)))


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH)


def printer() -> Callable[[str, str, Sequence[Row]], None]:
    """A function that prints the preflights of several sites and jobs: the first as a table, the others as lines."""
    console, printed = _console(), list[str]()

    def show(site: str, job: str, rows: Sequence[Row]) -> None:
        console.print(f"preflight of {site} for {job}:", "" if printed else table(rows), highlight=False, end="")
        console.print(line(rows) if printed else "", markup=False, highlight=False)
        printed.append(site)

    return show


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table("check", "", "seen", "what to do", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        made.add_row(row.check, Text(row.state, style=_COLOURS[row.state]), Text(row.seen), Text(row.do))
    return made


def line(rows: Sequence[Row]) -> str:
    """The rows as one line: the number of passed checks, and the others in full."""
    passed = sum(row.state == "pass" for row in rows)
    others = [f"{row.check} {row.state}: {row.seen}" for row in rows if row.state != "pass"]
    return "; ".join([f"{passed} of {len(rows)} checks pass", *others])
