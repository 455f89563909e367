"""The command line: `python -m preprocessing DATASET | pairs | check | look`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedfms.errors import DataError, FedfmsError
from fedfms.files import write_atomic
from fedfms.names import NAME_RULE, is_name
from preprocessing import pairs
from preprocessing.check import check_site, find_sites
from preprocessing.convert import Summary, convert_site, list_sites
from preprocessing.raw import need_folder, split_by_access
from preprocessing.recipe import Recipe
from preprocessing.registry import DATASETS

_EPILOG = """\
examples:
  python -m preprocessing polyp --raw RAW --out DATA
      all the sites that RAW holds; DATA becomes the data_root of a site's settings.
  python -m preprocessing polyp --help
      what a data set is, under which licence, where it is asked for, and how RAW must look.
  python -m preprocessing pairs --raw MY_FOLDER --out DATA --dataset fundus --site my_hospital --rule rule.yaml
      MY_FOLDER holds images/ and labels/.
  python -m preprocessing check DATA
      is everything still as it was converted?
  python -m preprocessing look DATA
      DATA/look.html: does the outline lie on the thing? It shows patients' images: it stays at the site.

What is written: DATA/<dataset>/<site>/manifest.json and lossless slices (WebP for colour, PNG for grey and for
masks) under pseudonymous ids. The secret key and the table from ids to files stay in RAW/.fedfms-keys (mode 0600);
where RAW is read-only, in DATA.keys beside DATA. No file outside RAW is opened, whatever links lead to. Run a
command again after an interruption or a change: ids stay the same, and what was converted is kept. Exit code: 0
all well; 1 some cases have faults (the others are converted), nothing could be converted (then an earlier
conversion stays as it was), or check found some; 2 wrong usage.
"""
_KEYS = """\
The secret key and the table from ids to files stay in RAW/.fedfms-keys; where RAW is read-only, in OUT.keys,
beside OUT.
"""
_LOOK = """\
One HTML page with a picture of each site of converted data: the slice of median marked area, beside itself with the
structures outlined; with counts and areas. No network, no script.

The page shows patients' images. It is written with mode 0600 and is to stay at the site, as the data are. Ids on it
are the pseudonymous ones.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad usage: one line."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        if arguments.command == "check":
            return _check(arguments.root)
        if arguments.command == "look":
            return _look(arguments)
        return _convert(arguments)
    except FedfmsError as error:
        print(f"preprocessing: {error.line()}", file=sys.stderr)
        return 1
    except OSError as error:  # its own text would name the path
        print(f"preprocessing: cannot read or write: {error.strerror}; check space and rights", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("preprocessing: interrupted; run it again to go on", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands, one for each data set of the registry."""
    text = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="python -m preprocessing", formatter_class=text, epilog=_EPILOG,
        description="Convert raw images and masks into what fedfms trains on, or check what was converted.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, dataset in DATASETS.items():
        command = commands.add_parser(
            name, help=dataset.help, description=dataset.about, formatter_class=text, epilog=_KEYS
        )
        which = command.add_mutually_exclusive_group()
        which.add_argument("--site", type=_name, help="convert this site only")
        which.add_argument("--all-sites", action="store_true", help="convert every site that RAW holds (the default)")
        _common(command, "folder with the raw data, as above")
        dataset.add_options(command)
    command = commands.add_parser(
        "pairs", help="any folder with images/ and labels/", description=pairs.__doc__,
        formatter_class=text, epilog=_KEYS,
    )  # fmt: skip
    command.add_argument("--dataset", required=True, type=_name, help="name of the data set, as a study says it")
    command.add_argument("--site", required=True, type=_name, help="name of the site, as a study says it")
    command.add_argument("--rule", type=Path, help="YAML with the rules above")
    _common(command, "folder with images/ and labels/")
    command = commands.add_parser("check", help="hashes, sizes, label values and splits of converted data")
    command.add_argument("root", type=Path, help="the folder that --out named, or a site's folder in it")
    _add_look(commands.add_parser("look", help="one page of pictures: an image of each site with its outlines",
        description=_LOOK, formatter_class=text))  # fmt: skip
    return parser


def _add_look(command: argparse.ArgumentParser) -> None:
    command.add_argument("root", type=Path, help="the folder that --out named, or a site's folder in it")
    command.add_argument("--out", type=Path, metavar="FILE.html", help="default ROOT/look.html")
    command.add_argument("--per-site", type=_pictures, default=1, metavar="N", help="pictures a site (default 1)")


def _common(command: argparse.ArgumentParser, raw_help: str) -> None:
    command.add_argument("--raw", required=True, type=Path, help=raw_help)
    command.add_argument("--out", required=True, type=Path, help="data root to write into")
    command.add_argument("--workers", type=_count, default=2, help="processes (default 2; 0 = none but this one)")


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"cannot be {text!r}: {NAME_RULE}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 64:
        raise argparse.ArgumentTypeError("must be a number in 0..64")
    return int(text)


def _pictures(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 50:
        raise argparse.ArgumentTypeError("must be a number in 1..50")
    return int(text)


def _convert(arguments: argparse.Namespace) -> int:
    need_folder(arguments.raw, "--raw")
    if arguments.command == "pairs":
        recipe, lines = pairs.load_recipe(arguments.dataset, arguments.site, arguments.rule), []
    else:
        recipe, lines = DATASETS[arguments.command].recipe(arguments), _closed(arguments.raw)
    summaries: list[Summary] = []
    for site in _sites(recipe, arguments, lines):
        try:
            summaries.append(_with_bar(site, recipe, arguments))
        except FedfmsError as error:
            lines.append(error.line() if site in error.where else f"site {site}: {error.line()}")
    for summary in summaries:
        lines += [f"site {summary.site}, case {case}: {text}" for case, text in summary.faults]
        if not summary.cases:
            lines.append(f"site {summary.site}: nothing could be converted; the output is as it was")
    _report(recipe, summaries, lines)
    return 1 if lines else 0


def _closed(raw: Path) -> list[str]:
    """A line on folders that nobody can know to be a site's or none; not by name, for that may be a patient's."""
    _, closed = split_by_access(raw)
    text = f"{closed} folders in --raw cannot be read; give this user the right to, or name a --site"
    return [text] if closed else []


def _sites(recipe: Recipe, arguments: argparse.Namespace, lines: list[str]) -> list[str]:
    """The sites to convert; with a site named, what is closed beside it does not matter."""
    found = list_sites(arguments.raw, recipe)
    sites = found if arguments.site is None else [site for site in found if site == arguments.site]
    if not sites:
        what = "no site of this data set" if arguments.site is None else f"no site {arguments.site!r}"
        usage = f"see `python -m preprocessing {arguments.command} --help` for the layout"
        raise DataError(f"{what} in --raw", do="; ".join([*lines, usage]))
    if arguments.site is not None:
        lines.clear()
    return sites


def _with_bar(site: str, recipe: Recipe, arguments: argparse.Namespace) -> Summary:
    with _bar(site) as advance:
        return convert_site(arguments.raw, arguments.out, site, recipe, arguments.workers, advance)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; gives what is called with the number done and the number in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _report(recipe: Recipe, summaries: Sequence[Summary], lines: Sequence[str]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)  # fits 80 columns with the longest name of a site here
    table.add_column("site", overflow="fold")
    for header in ("cases", "slices", "empty", "patients", "MB", "faults"):
        table.add_column(header, justify="right")
    for s in summaries:
        table.add_row(s.site, *map(str, (s.cases, s.slices, s.empty, s.patients, f"{s.mb:.1f}", len(s.faults))))
    Console().print(table)
    if recipe.options:
        print("chosen: " + ", ".join(f"{name} = {value}" for name, value in recipe.options.items()))
    for note in dict.fromkeys(note for s in summaries for note in s.notes):
        print(note)
    for line in lines:
        print(line)
    if lines:
        print(f"{_faults(len(lines))}. The key file leads from an id to its files; mend them, run it again.")


def _faults(count: int) -> str:
    return "1 fault" if count == 1 else f"{count} faults"


def _check(root: Path) -> int:
    need_folder(root, "the data root")
    count = 0
    for folder in find_sites(root):
        faults = check_site(folder)
        for fault in faults:
            print(f"{folder.parent.name}/{folder.name}: {fault}")
        count += len(faults)
        print(f"{folder.parent.name}/{folder.name}: {_faults(len(faults)) if faults else 'as converted'}")
    return 1 if count else 0


def _look(arguments: argparse.Namespace) -> int:
    from preprocessing.look import SiteFault, look_at, make_page  # here: it draws with torch, which takes seconds

    need_folder(arguments.root, "the data root")
    folders = find_sites(arguments.root)
    out: Path = arguments.out or arguments.root / "look.html"
    if any(out.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise DataError("the page would lie among a site's converted files", do="name another place with --out")
    looks = []
    for folder in folders:
        with _bar(folder.name) as advance:
            looks.append(look_at(folder, arguments.per_site, advance))
    write_atomic(out, make_page(looks), mode=0o600)
    faults = [look for look in looks if isinstance(look, SiteFault)]
    for fault in faults:
        print(f"{fault.name}: {fault.line}")
    print(out)
    return 1 if faults else 0
