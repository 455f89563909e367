"""`fedfms table`: methods against one another on a study, over seeds and held-out sites, as the papers print it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedfms.cli.files import can_be_folder, comma, numbers, positive, settings_here
from fedfms.errors import SettingsError, TrainingError
from fedfms.settings import SiteSettings

if TYPE_CHECKING:
    from fedfms.experiments.plan import Cell, Grid

_EXAMPLES = """\
examples:
  fedfms table phantom --out workspace/table                       # five methods, each phantom site held out once
  fedfms table polyp --methods fedmsa,fedsca,local --protocol personal --seeds 0,1,2 --root DATA \\
      --checkpoint weights/lite_medsam.pth --out workspace/polyp
  fedfms table fedsca-table4 --root DATA --out workspace/table4    # a packaged table: variants, a plot
  fedfms table phantom --out workspace/table --dry-run             # how many runs, bytes and hours
  fedfms table --render workspace/table                            # the tables again, of the runs that are there

A run that is cut goes on where it stood: type the same command again.
"""


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    table = commands.add_parser(
        "table", help="methods against one another over seeds and held-out sites: a table, its figures, its cost",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    table.add_argument("study", nargs="?", help="a study or a table: a YAML file, or a name of `fedfms list`")
    table.add_argument("--on", metavar="STUDY", help="another study than the one that the table names")
    table.add_argument("--render", type=Path, metavar="OUT", help="write the tables of OUT's runs again, run nothing")
    table.add_argument("--out", type=Path, help="a folder for the runs and the tables; a cut run goes on there")
    table.add_argument("--methods", type=comma, help="a,b (default: fedmsa,fedsam,fedunet,local,msa)")
    table.add_argument("--protocol", choices=("held-out", "personal"), help="default: held-out")
    table.add_argument("--seeds", type=numbers, help="0,1,2 (default: 0)")
    table.add_argument("--sites", type=comma, help="a,b,c (default: the study's)")
    table.add_argument("--held-out", type=comma, help="a,b: only these are held out, one at a time (default: each)")
    table.add_argument("--backbone", help="as `fedfms list` names them")
    table.add_argument("--rounds", type=positive)
    table.add_argument("--preset", help="as `fedfms list` names them")
    table.add_argument("--checkpoint", type=Path, help="weights to start from; its folder must hold the others', too")
    table.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    table.add_argument("--root", type=Path, help="the data root (default: the one in this site's settings)")
    table.add_argument(
        "--engine",
        choices=("reference", "simulator"),
        default="reference",
        help="reference: a process a run, quick; simulator: NVFLARE's, to the same scores, where how "
        "far layers move is not told",
    )
    table.add_argument("--jobs", type=int, default=1, help="runs at once (default 1)")
    table.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    table.add_argument("--no-estimate", action="store_true", help="start without timing a step first")
    table.set_defaults(run=_table)


def _table(args: argparse.Namespace) -> int:
    from fedfms.experiments.table import refuse_foreign

    console = Console()
    if args.render is not None:
        return _render(args.render, console)
    if args.study is None or args.out is None:
        raise SettingsError("a table needs a study and --out", do="as in `fedfms table phantom --out workspace/table`")
    if args.jobs < 1:
        raise SettingsError("--jobs must be 1 or more")
    grid, settings = _grid(args), _settings(args)
    cells = grid.cells()
    can_be_folder(args.out, "--out")
    refuse_foreign(args.out)
    _tell_plan(args, cells, settings, console)
    if args.dry_run:
        return 0
    return _run(args, grid, cells, settings, console)


def _grid(args: argparse.Namespace) -> Grid:
    from fedfms.experiments.plan import load_grid
    from fedfms.flare.job import with_checkpoint

    overrides = list(args.set)
    named = {"model.backbone": args.backbone, "train.rounds": args.rounds}
    if args.checkpoint is not None:
        named |= with_checkpoint(args.checkpoint)
    overrides += [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    return load_grid(
        args.study, study=args.on, methods=args.methods, protocol=args.protocol, seeds=args.seeds, sites=args.sites,
        held_out=args.held_out, preset=args.preset, overrides=overrides or None,
    )  # fmt: skip


def _settings(args: argparse.Namespace) -> SiteSettings:
    from fedfms.machine import threads_for

    settings = settings_here(args.root)
    if args.checkpoint is not None:
        settings = replace(settings, checkpoints=args.checkpoint.resolve().parent)
    if settings.cache is None:  # runs that begin alike share the features of the frozen stage
        settings = replace(settings, cache=args.out.resolve() / "cache")
    return replace(settings, threads=threads_for(settings.threads, args.jobs))


def _tell_plan(args: argparse.Namespace, cells: Sequence[Cell], settings: SiteSettings, console: Console) -> None:
    from fedfms.experiments.estimate import check_starts, count, estimate
    from fedfms.experiments.runner import CELLS, RESULT

    left = [cell for cell in cells if not (args.out / CELLS / cell.name / RESULT).is_file()]
    if len(left) < len(cells):
        console.print(f"{len(cells) - len(left)} of {len(cells)} runs are there already")
    if not left:
        return
    for note in check_starts(left, settings, must=not args.dry_run):
        console.print(note, markup=False)
    if args.no_estimate:
        console.print(count(left).text(args.jobs))
        return
    with console.status("opening the sites' data") as status:
        say = status.update if console.is_terminal else partial(console.print, markup=False)  # a log shows no status
        told = estimate(left, settings, lambda name: say(f"timing a step of {name}"))
    console.print(told.text(args.jobs))


def _run(args: argparse.Namespace, grid: Grid, cells: Sequence[Cell], settings: SiteSettings, console: Console) -> int:
    from fedfms.experiments.runner import check, locked, run_cells
    from fedfms.experiments.table import save_grid

    total = sum(cell.study.train.rounds for cell in cells)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with locked(args.out), Progress(*columns, console=console) as progress:
        check(cells, args.out, args.engine)
        save_grid(args.out, grid, cells, _command(args))
        bar = progress.add_task("rounds", total=total)
        seen: set[str] = set()

        def told(done: Mapping[str, int]) -> None:
            progress.update(bar, completed=sum(done.values()))
            finished = {cell.name for cell in cells if done[cell.name] == cell.study.train.rounds}
            if not console.is_terminal and finished - seen:  # a log shows no bar
                seen.update(finished)
                console.print(f"{len(seen)} of {len(cells)} runs, {sum(done.values())} of {total} rounds", markup=False)

        faults = run_cells(
            cells, args.out, settings, engine=args.engine, jobs=args.jobs, told=told,
            failed=lambda name, fault: console.print(f"{name}: {fault}", markup=False),
        )  # fmt: skip
    if len(faults) == len(cells):
        raise TrainingError(f"none of {len(cells)} runs was finished", do="mend that and type the same command again")
    return _render(args.out, console)


def _command(args: argparse.Namespace) -> str:
    """The command line as it may be printed beside a result: without this machine's folders."""
    told = {str(args.root): "DATA", str(args.out): "OUT"}
    if args.checkpoint is not None:
        told[str(args.checkpoint)] = args.checkpoint.name
    return " ".join(["fedfms", *(shlex.quote(told.get(text, text)) for text in sys.argv[1:])])


def _render(out: Path, console: Console) -> int:
    from fedfms.experiments.table import render

    told = render(out)
    console.print(told.group)
    console.print(*told.paths, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return 1 if told.missing else 0
