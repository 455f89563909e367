"""`fedfms table`: an experiment, from its plan to its tables."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedfms.cli.files import site_settings
from fedfms.cli.options import Commands, add_command, add_shared, comma, positive
from fedfms.errors import SettingsError, TrainingError
from fedfms.settings import SiteSettings

if TYPE_CHECKING:
    from fedfms.experiments.plan import Experiment, Run

_DESCRIPTION = """\
Compare methods on a study over seeds and held-out sites, and write tables and figures of the scores.

STUDY is a study, or a packaged table of `fedfms list` with its own methods and variants. An interrupted command is
resumed by typing it again. `fedfms table --render OUT` writes the tables of the finished runs without running anything.
"""


def add_commands(commands: Commands) -> None:
    """Add `fedfms table`."""
    table = add_command(
        commands, "table", _table, help="compare methods over seeds and held-out sites: tables, figures, cost",
        description=_DESCRIPTION,
        example="fedfms table polyp --methods fedmsa,fedsca,local --protocol personal --seeds 0,1,2 --root DATA "
                "--out OUT",
    )  # fmt: skip
    table.add_argument("study", nargs="?", metavar="STUDY", help="a YAML file, or a name of `fedfms list`")
    table.add_argument("--on", metavar="STUDY", help="a study to use in place of the table's own")
    table.add_argument("--render", type=Path, metavar="OUT", help="write the tables of OUT's finished runs again")
    table.add_argument("--out", type=Path, metavar="OUT", help="the folder for runs and tables")
    table.add_argument("--methods", type=comma, metavar="A,B", help="default: fedmsa,fedsam,fedunet,local,msa")
    table.add_argument("--protocol", choices=("held-out", "personal"), help="default: held-out")
    table.add_argument("--held-out", type=comma, metavar="A,B", help="sites to hold out, one at a time (default: each)")
    add_shared(table, "--seeds", "--sites", "--backbone", "--rounds", "--preset", "--checkpoint", "--set", "--root")
    table.add_argument(
        "--engine", choices=("in-process", "simulator"), default="in-process",
        help="in-process: fast; simulator: NVFLARE's, same scores, without the movement of layers",
    )  # fmt: skip
    table.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs in parallel (default: 1)")
    table.add_argument("--dry-run", action="store_true", help="print the number of runs, bytes and hours, and stop")
    table.add_argument("--no-estimate", action="store_true", help="do not time a step first")


def _table(args: argparse.Namespace) -> int:
    from fedfms.experiments.folder import check_folder

    console = Console()
    if args.render is not None:
        return _render(args.render, console)
    if args.study is None or args.out is None:
        raise SettingsError("a table needs a study and --out", do="as in `fedfms table phantom --out workspace/table`")
    experiment, settings = _experiment(args), _settings(args)
    runs = experiment.runs()
    check_folder(args.out)
    _print_plan(args, runs, settings, console)
    if args.dry_run:
        return 0
    return _execute(args, experiment, runs, settings, console)


def _experiment(args: argparse.Namespace) -> Experiment:
    from fedfms.experiments.plan import load_experiment
    from fedfms.flare.job import with_checkpoint

    named = {"model.backbone": args.backbone, "train.rounds": args.rounds}
    if args.checkpoint is not None:
        named |= with_checkpoint(args.checkpoint)
    overrides = [*args.set, *(f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None)]
    return load_experiment(
        args.study, study=args.on, methods=args.methods, protocol=args.protocol, seeds=args.seeds, sites=args.sites,
        held_out=args.held_out, preset=args.preset, overrides=overrides,
    )  # fmt: skip


def _settings(args: argparse.Namespace) -> SiteSettings:
    from fedfms.machine import threads_for

    settings = site_settings(args.root, checkpoint=args.checkpoint)
    if settings.cache is None:  # runs with the same initial weights share the outputs of the frozen encoder
        settings = replace(settings, cache=args.out.resolve() / "cache")
    return replace(settings, threads=threads_for(settings.threads, args.jobs))


def _print_plan(args: argparse.Namespace, runs: Sequence[Run], settings: SiteSettings, console: Console) -> None:
    from fedfms.experiments.estimate import check_initial_weights, count, estimate
    from fedfms.experiments.runner import is_finished

    remaining = [run for run in runs if not is_finished(args.out, run)]
    if len(remaining) < len(runs):
        console.print(f"{len(runs) - len(remaining)} of {len(runs)} runs are finished already")
    if not remaining:
        return
    for note in check_initial_weights(remaining, settings, required=not args.dry_run):
        console.print(note, markup=False)
    if args.no_estimate:
        console.print(count(remaining).text(args.jobs))
        return
    with console.status("opening the sites' data") as status:
        show = status.update if console.is_terminal else partial(console.print, markup=False)  # for logs
        found = estimate(remaining, settings, lambda name: show(f"timing a step of {name}"))
    console.print(found.text(args.jobs))


def _execute(
    args: argparse.Namespace, experiment: Experiment, runs: Sequence[Run], settings: SiteSettings, console: Console
) -> int:
    from fedfms.experiments.folder import save_record
    from fedfms.experiments.runner import check_tasks, execute_runs
    from fedfms.files import locked

    total = sum(run.study.train.rounds for run in runs)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with locked(args.out), Progress(*columns, console=console) as bar:
        check_tasks(runs, args.out, args.engine)
        save_record(args.out, experiment, runs, _command(args))
        task = bar.add_task("rounds", total=total)
        printed: set[str] = set()

        def progress(done: Mapping[str, int]) -> None:
            bar.update(task, completed=sum(done.values()))
            finished = {run.name for run in runs if done[run.name] == run.study.train.rounds}
            if not console.is_terminal and finished - printed:  # a log gets lines instead of a bar
                printed.update(finished)
                text = f"{len(printed)} of {len(runs)} runs, {sum(done.values())} of {total} rounds"
                console.print(text, markup=False)

        errors = execute_runs(
            runs, args.out, settings, engine=args.engine, jobs=args.jobs, progress=progress,
            on_error=lambda name, error: console.print(f"{name}: {error}", markup=False),
        )  # fmt: skip
    if len(errors) == len(runs):
        raise TrainingError(f"all {len(runs)} runs failed", do="fix the errors above and type the same command again")
    return _render(args.out, console)


def _command(args: argparse.Namespace) -> str:
    """The command line as published with the results: without this machine's folders."""
    public = {str(args.root): "DATA", str(args.out): "OUT"}
    if args.checkpoint is not None:
        public[str(args.checkpoint)] = args.checkpoint.name
    return " ".join(["fedfms", *(shlex.quote(public.get(text, text)) for text in sys.argv[1:])])


def _render(out: Path, console: Console) -> int:
    from fedfms.experiments.folder import render

    tables = render(out)
    console.print(tables.group)
    console.print(*tables.paths, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return 1 if tables.missing else 0
