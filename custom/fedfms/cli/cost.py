"""`fedfms cost`: parameters, bytes, FLOPs, memory and seconds of methods on a study, before anything runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedfms.cli.files import write
from fedfms.cli.options import Commands, add_command, add_shared, positive
from fedfms.files import json_text
from fedfms.study import find_study, load_study

if TYPE_CHECKING:
    from fedfms.study import Study


def add_commands(commands: Commands) -> None:
    """Add `fedfms cost`."""
    cost = add_command(
        commands, "cost", _cost, example="fedfms cost polyp --preset paper --methods fedmsa,fedsca:layers=4 --no-time",
        help="parameters, bytes, FLOPs, memory and seconds of methods, next to the papers' figures",
    )  # fmt: skip
    add_shared(cost, "study", "--backbone", "--preset", "--set", "--json")
    cost.add_argument("--methods", metavar="A,B", help="a,b:option=value,... or all (default: the study's)")
    cost.add_argument("--sites", type=positive, metavar="N", help="number of training sites (default: the study's)")
    cost.add_argument("--no-time", action="store_true", help="count only; run no step")
    cost.add_argument("--steps", type=positive, default=3, metavar="N", help="steps to time per method (default: 3)")
    cost.add_argument("--timeout", type=positive, default=600, metavar="S", help="for the steps of one method")
    cost.add_argument("--device", default="", help="device to time: cpu, cuda:1 (default: cuda if available)")
    cost.add_argument("--out", type=Path, metavar="DIR", help="write cost.json and cost.md into this folder")


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
    text = json_text(cost)
    if args.json is not None:
        write(args.json, text)
    if args.out is not None:
        write(args.out / "cost.json", text)
        write(args.out / "cost.md", markdown(cost))


def _studies(args: argparse.Namespace) -> list[Study]:
    """The study with each method that the command line names."""
    from fedfms.methods import METHODS
    from fedfms.reporting.cost.published import with_sites

    path = find_study(args.study)
    made = []
    for text in sorted(METHODS) if args.methods == "all" else (args.methods or "").split(","):
        name, *options = text.split(":")
        study = load_study(
            path, preset=args.preset, overrides=[*args.set, *(f"method_options.{option}" for option in options)],
            **{"method": name or None, "model.backbone": args.backbone},
        )  # fmt: skip
        made.append(study if args.sites is None else with_sites(study, args.sites))
    return made
