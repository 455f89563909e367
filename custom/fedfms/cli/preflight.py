"""`fedfms preflight`: at a site, before a study: will its kit, machine, data and link do? A table, and an exit code."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfms.errors import ProvisioningError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedfms.flare.preflight import Row

_EXAMPLES = """\
examples:
  fedfms preflight --kit /srv/fedfms/kit                                   kit, package, way to the server
  fedfms preflight --kit /srv/fedfms/kit --job fedmsa --full --mbit 50     and all that this study needs
"""
_COLOURS = {"pass": "green", "warn": "yellow", "FAIL": "red"}
_WIDTH = 140  # where the output is no terminal


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    parser = commands.add_parser(
        "preflight", help="at a site, before a study: kit, package, server, disk, data, weights, memory, link",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kit", required=True, type=Path, metavar="DIR", help="the site's kit, opened")
    parser.add_argument("--job", type=Path, metavar="DIR", help="the study's job, as the lead will submit it")
    parser.add_argument("--full", action="store_true", help="compare every image with its hash, not a sample")
    parser.add_argument("--mbit", type=_speed, metavar="N", help="the link's speed in Mbit/s, as you know it")
    parser.add_argument("--timeout-s", type=_speed, default=10.0, metavar="S", help="of a connection; default 10")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_preflight)


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def _preflight(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fedfms.flare.preflight import Context, failed, preflight

    for folder, what in ((args.kit, "kit"), (args.job, "job")):
        if folder is not None and not folder.is_dir():
            raise ProvisioningError(f"--{what} names no folder", where="preflight", do=f"name the {what}'s, opened")
    kit = args.kit.resolve()  # a kit's JSON has its folder's full name
    context, rows = Context(kit, args.job, args.full, args.mbit, args.timeout_s), []
    with Console(stderr=True).status("") as status:
        for row in preflight(context):
            rows.append(row)
            status.update(f"{row.check}: {row.state}")
    if args.json:
        sys.stdout.write(json.dumps({"ok": not failed(rows), "checks": [asdict(row) for row in rows]}, indent=1) + "\n")
    else:
        _console().print(table(rows))
    return int(bool(failed(rows)))


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH)


def teller() -> Callable[[str, str, Sequence[Row]], None]:
    """What shows the preflights of several sites and jobs: the first as a table, the others in a line."""
    console, told = _console(), list[str]()

    def show(site: str, job: str, rows: Sequence[Row]) -> None:
        console.print(f"preflight of {site} for {job}:", "" if told else table(rows), highlight=False, end="")
        console.print(line(rows) if told else "", markup=False, highlight=False)
        told.append(site)

    return show


def table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table("check", "", "seen", "what to do", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        made.add_row(row.check, Text(row.state, style=_COLOURS[row.state]), Text(row.seen), Text(row.do))
    return made


def line(rows: Sequence[Row]) -> str:
    """The rows in one line: how many pass, and what the others are."""
    passed = sum(row.state == "pass" for row in rows)
    others = [f"{row.check} {row.state}: {row.seen}" for row in rows if row.state != "pass"]
    return "; ".join([f"{passed} of {len(rows)} checks pass", *others])
