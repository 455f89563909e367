"""`fedfms prepare`: raw images and masks into the format that fedfms trains on, and checks of converted data."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedfms.cli.options import Parser, add_command
from fedfms.errors import DataError, FedfmsError
from fedfms.files import write_atomic
from fedfms.names import NAME_RULE, is_name
from fedfms.preprocessing import pairs
from fedfms.preprocessing.check import check_site, find_sites
from fedfms.preprocessing.convert import Summary, convert_site, list_sites
from fedfms.preprocessing.raw import require_folder, split_by_access
from fedfms.preprocessing.recipe import Recipe, number_in
from fedfms.preprocessing.registry import DATASETS

_EPILOG = """\
examples:
  fedfms prepare polyp --raw RAW --out DATA
      Convert every site in RAW. DATA is the data_root in the settings of a site.
  fedfms prepare polyp --help
      Show the layout of RAW, the licence of the data, and where to request them.
  fedfms prepare pairs --raw MY_FOLDER --out DATA --dataset fundus --site my_hospital --rule rule.yaml
      Convert your own data. MY_FOLDER holds images/ and labels/.
  fedfms prepare check DATA
      Check that the converted files have not changed.
  fedfms prepare look DATA
      Write DATA/look.html, to check that outlines lie on the structures. It shows patients: keep it at the site.

Output: DATA/<dataset>/<site>/manifest.json, and lossless slices (WebP for colour, PNG for grey and for masks) under
pseudonymous ids. The secret key and the table from ids to files are in RAW/.fedfms-keys (mode 0600), or in DATA.keys
next to DATA if RAW is read-only. No file outside of RAW is opened, even through a link.

After an interruption or a change of the raw data, run the same command again: ids stay the same, and only changed
slices are written.

Exit codes: 0 no faults; 1 some cases have faults and the others were converted, or nothing could be converted and an
earlier conversion is unchanged, or `check` found faults; 2 wrong usage.
"""
_KEYS = """\
The secret key and the table from ids to files are in RAW/.fedfms-keys, or in OUT.keys next to OUT if RAW is read-only.
"""
_LOOK = """\
Write one HTML page with a picture of each site of converted data: the slice with the median marked area, next to the
same slice with its structures outlined; with counts and areas. The page uses no network and no scripts.

The page shows images of patients. It has mode 0600 and must stay at the site, as the data do. Its ids are pseudonyms.
"""
_DESCRIPTION = "Convert raw images and masks into the format that fedfms trains on, or check converted data."
_ROOT = "the folder that was --out of the conversion, or the folder of one site in it"


def add_commands(prepare: Parser) -> None:
    """Add the commands of `fedfms prepare`, one for each registered data set."""
    prepare.description, prepare.epilog = _DESCRIPTION, _EPILOG
    commands = prepare.add_subparsers(required=True, metavar="COMMAND")

    for name, dataset in DATASETS.usable().items():
        command = add_command(
            commands, name, partial(_convert_sites, name), help=dataset.help, description=dataset.about, epilog=_KEYS,
            example=f"fedfms prepare {name} --raw RAW --out DATA",
        )  # fmt: skip
        which = command.add_mutually_exclusive_group()
        which.add_argument("--site", type=_name, help="convert this site only")
        which.add_argument("--all-sites", action="store_true", help="convert every site in RAW (the default)")
        _add_folders(command, "folder with the raw data in the layout above")
        dataset.add_options(command)
    command = add_command(
        commands, "pairs", _convert_pairs, help="your own data: any folder with images/ and labels/",
        description=pairs.__doc__ or "", epilog=_KEYS,
        example="fedfms prepare pairs --raw MINE --out DATA --dataset fundus --site my_hospital --rule rule.yaml",
    )  # fmt: skip
    command.add_argument("--dataset", required=True, type=_name, help="name of the data set, as in the study")
    command.add_argument("--site", required=True, type=_name, help="name of the site, as in the study")
    command.add_argument("--rule", type=Path, metavar="FILE.yaml", help="rule file with the keys above")
    _add_folders(command, "folder with images/ and labels/")
    text = "check hashes, sizes, label values and splits of converted data"
    command = add_command(commands, "check", _check, help=text, example="fedfms prepare check DATA")
    command.add_argument("root", type=Path, help=_ROOT)
    command = add_command(
        commands, "look", _look, help="write one page of pictures: an image of each site with its outlines",
        description=_LOOK, example="fedfms prepare look DATA",
    )  # fmt: skip
    command.add_argument("root", type=Path, help=_ROOT)
    command.add_argument("--out", type=Path, metavar="FILE.html", help="default ROOT/look.html")
    command.add_argument(
        "--per-site", type=number_in(1, 50), default=1, metavar="N", help="pictures per site (default 1)"
    )


def _add_folders(command: argparse.ArgumentParser, raw_help: str) -> None:
    command.add_argument("--raw", required=True, type=Path, help=raw_help)
    command.add_argument("--out", required=True, type=Path, help="data root to write into")
    command.add_argument(
        "--workers", type=number_in(0, 64), default=2, metavar="N",
        help="number of worker processes (default 2; 0: convert in this process)",
    )  # fmt: skip


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"cannot be {text!r}: {NAME_RULE}")
    return text


def _convert_pairs(arguments: argparse.Namespace) -> int:
    require_folder(arguments.raw, "--raw")
    recipe = pairs.load_recipe(arguments.dataset, arguments.site, arguments.rule)
    return _convert(recipe, list_sites(arguments.raw, recipe), arguments, [])


def _convert_sites(dataset: str, arguments: argparse.Namespace) -> int:
    """Convert the sites of a registered data set, or the one named by `--site`."""
    require_folder(arguments.raw, "--raw")
    recipe = DATASETS[dataset].recipe(arguments)
    _, closed = split_by_access(arguments.raw)
    # a closed folder is not named, because nobody can tell whether it is a site's or a patient's
    text = f"{closed} folders in --raw cannot be read; give this user the right to read them, or name a --site"
    lines = [text] if closed else []
    found = list_sites(arguments.raw, recipe)
    sites = found if arguments.site is None else [site for site in found if site == arguments.site]
    if not sites:
        what = "no site of this data set" if arguments.site is None else f"no site {arguments.site!r}"
        usage = f"see `fedfms prepare {dataset} --help` for the layout"
        raise DataError(f"{what} in --raw", do="; ".join([*lines, usage]))
    return _convert(recipe, sites, arguments, lines if arguments.site is None else [])


def _convert(recipe: Recipe, sites: Sequence[str], arguments: argparse.Namespace, lines: list[str]) -> int:
    """Convert sites and print a summary; `lines` are faults found so far."""
    summaries: list[Summary] = []
    for site in sites:
        try:
            with _progress(site) as advance:
                summary = convert_site(arguments.raw, arguments.out, site, recipe, arguments.workers, advance)
            summaries.append(summary)
        except FedfmsError as error:
            lines.append(error.line() if site in error.where else f"site {site}: {error.line()}")
    for summary in summaries:
        lines += [f"site {summary.site}, case {case}: {text}" for case, text in summary.faults]
        if not summary.cases:
            lines.append(f"site {summary.site}: nothing could be converted; the output is unchanged")
    _print_summary(recipe, summaries, lines)
    return 1 if lines else 0


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; yields a function of the number done and the total."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_summary(recipe: Recipe, summaries: Sequence[Summary], lines: Sequence[str]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)  # fits 80 columns with the longest name of a registered site
    table.add_column("site", overflow="fold")
    for header in ("cases", "slices", "empty", "patients", "MB", "faults"):
        table.add_column(header, justify="right")
    for s in summaries:
        table.add_row(s.site, *map(str, (s.cases, s.slices, s.empty, s.patients, f"{s.mb:.1f}", len(s.faults))))
    Console().print(table)
    if recipe.options:
        print("options: " + ", ".join(f"{name} = {value}" for name, value in recipe.options.items()))
    for note in dict.fromkeys(note for s in summaries for note in s.notes):
        print(note)
    for line in lines:
        print(line)
    if lines:
        advice = "Look up the files of a case in the key file (.fedfms-keys), correct them, and run the command again."
        print(f"{_count(len(lines))}. {advice}")


def _count(faults: int) -> str:
    return "1 fault" if faults == 1 else f"{faults} faults"


def _check(arguments: argparse.Namespace) -> int:
    require_folder(arguments.root, "the data root")
    count = 0
    for folder in find_sites(arguments.root):
        name, faults = f"{folder.parent.name}/{folder.name}", check_site(folder)
        for line in [*faults, _count(len(faults)) if faults else "no faults"]:
            print(f"{name}: {line}")
        count += len(faults)
    return 1 if count else 0


def _look(arguments: argparse.Namespace) -> int:
    from fedfms.preprocessing.look import look_at, make_page  # imports torch, which takes seconds

    require_folder(arguments.root, "the data root")
    folders = find_sites(arguments.root)
    out: Path = arguments.out or arguments.root / "look.html"
    if any(out.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise DataError("the page would be among the converted files of a site", do="name another place with --out")
    looks = []
    for folder in folders:
        with _progress(folder.name) as advance:
            looks.append(look_at(folder, arguments.per_site, advance))
    write_atomic(out, make_page(looks), mode=0o600)
    faults = [look for look in looks if look.fault]
    for look in faults:
        print(f"{look.name}: {look.fault}")
    print(out)
    return 1 if faults else 0
