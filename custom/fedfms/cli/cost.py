"""`fedfms cost`: what methods cost on a study, before anything runs: parameters, bytes, FLOPs, memory, seconds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfms.cli.files import positive, write
from fedfms.study import find_study, load_study

if TYPE_CHECKING:
    from fedfms.study import Study

_EXAMPLES = """\
examples:
  fedfms cost polyp --preset paper --methods fedmsa,fedsam,fedsca --no-time
  fedfms cost polyp --methods fedmsa,fedprox:full=true,fedsca:layers=4 --sites 4 --json cost.json
"""


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    cost = commands.add_parser(
        "cost", help="what methods cost: parameters, bytes, FLOPs, memory, seconds; beside the papers' figures",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    cost.add_argument("study", help="a YAML file, or the name of a packaged study")
    cost.add_argument("--methods", metavar="A,B", help="a,b:option=value,... or all (default: the study's)")
    cost.add_argument("--backbone", help="as `fedfms list` names them")
    cost.add_argument("--preset", help="schedule and backbone of `fedfms list`, laid over the study's")
    cost.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    cost.add_argument("--sites", type=positive, metavar="N", help="sites that train (default: the study's)")
    cost.add_argument("--no-time", action="store_true", help="count only: no step is run")
    cost.add_argument("--steps", type=positive, default=3, help="steps to time, each method in a process of its own")
    cost.add_argument("--timeout", type=positive, default=600, metavar="S", help="for the steps of one method")
    cost.add_argument("--device", default="", help="to time on: cpu, cuda:1 (default: the card where there is one)")
    cost.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    cost.add_argument("--out", type=Path, metavar="DIR", help="write cost.json and cost.md here")
    cost.set_defaults(run=_cost)


def _cost(args: argparse.Namespace) -> None:
    from rich.console import Console

    from fedfms.reporting.cost import Timed, make_cost
    from fedfms.reporting.cost.show import markdown, rich_tables
    from fedfms.settings import check_device

    studies = _studies(args)
    check_device(args.device, "--device")
    timed = None if args.no_time else Timed(args.steps, args.timeout, args.device)
    with Console(stderr=True).status("") as status:
        cost = make_cost(studies, timed, lambda text: status.update(text))
    console = Console()
    for table in rich_tables(cost):
        console.print(table)
    for note in cost["notes"]:
        console.print(note, markup=False, highlight=False)
    text = json.dumps(cost, indent=1, allow_nan=False) + "\n"
    if args.json is not None:
        write(args.json, text)
    if args.out is not None:
        write(args.out / "cost.json", text)
        write(args.out / "cost.md", markdown(cost))


def _studies(args: argparse.Namespace) -> list[Study]:
    """The study by each of the methods that the command names."""
    from fedfms.methods import METHODS
    from fedfms.reporting.cost.published import with_sites

    path = find_study(args.study)
    named = sorted(METHODS) if args.methods == "all" else (args.methods or "").split(",")
    made = []
    for text in named:
        name, *options = text.split(":")
        study = load_study(
            path, preset=args.preset, overrides=[*args.set, *(f"method_options.{option}" for option in options)],
            **{"method": name or None, "model.backbone": args.backbone},
        )  # fmt: skip
        made.append(study if args.sites is None else with_sites(study, args.sites))
    return made
