"""The command line: `python -m preprocessing polyp | pairs | check`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedfms.errors import DataError, FedfmsError
from preprocessing import pairs, polyp
from preprocessing.check import check_site, find_sites
from preprocessing.convert import Summary, convert_site
from preprocessing.raw import is_folder, site_folders
from preprocessing.recipe import Recipe

_EPILOG = """\
examples:
  python -m preprocessing polyp --raw RAW --out DATA
      RAW holds one folder a site, each with images/ and labels/; DATA becomes the data_root of a site's
      settings.
  python -m preprocessing pairs --raw MY_FOLDER --out DATA --dataset fundus --site my_hospital --rule
  rule.yaml
      MY_FOLDER holds images/ and labels/.
  python -m preprocessing check DATA
      is everything still as it was converted?

What is written: DATA/<dataset>/<site>/manifest.json and lossless PNG slices under pseudonymous ids. The
secret key and the table from ids to files stay in RAW/.fedfms-keys (mode 0600); where RAW is read-only, in
DATA.keys beside DATA. Run a command again after an interruption or a change: ids stay the same, and what was
converted is kept. Exit code: 0 all well; 1 some cases have faults (the others are converted), nothing could be
converted (then an earlier conversion stays as it was), or check found some; 2 wrong usage.
"""
_KEYS = """\
The secret key and the table from ids to files stay in RAW/.fedfms-keys; where RAW is read-only, in OUT.keys,
beside OUT.
"""
_SITES = "\n  ".join(polyp.SITES)
_POLYP_EPILOG = f"""\
RAW holds RAW/<site>/images/a.jpg and RAW/<site>/labels/a_mask.jpg (or a.jpg). The patient rule goes by the name
of the site's folder, so name it as here:
  {_SITES}
{_KEYS}"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad usage: one line."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "check":
            return _check(arguments.root)
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


def _parser() -> argparse.ArgumentParser:
    raw_text = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="python -m preprocessing", formatter_class=raw_text, epilog=_EPILOG,
        description="Convert raw images and masks into what fedfms trains on, or check what was converted.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="{polyp,pairs,check}", parser_class=_Parser)
    command = commands.add_parser(
        "polyp",
        help="the colonoscopy data set, all its sites or one",
        description=polyp.__doc__,
        formatter_class=raw_text,
        epilog=_POLYP_EPILOG,
    )
    command.add_argument("--site", help="convert this site's folder only")
    _common(command, "folder with one folder a site")
    command = commands.add_parser(
        "pairs",
        help="any folder with images/ and labels/",
        description=pairs.__doc__,
        formatter_class=raw_text,
        epilog=_KEYS,
    )
    command.add_argument("--dataset", required=True, type=_name, help="name of the data set, as a study says it")
    command.add_argument("--site", required=True, type=_name, help="name of the site, as a study says it")
    command.add_argument("--rule", type=Path, help="YAML with the rules above")
    _common(command, "folder with images/ and labels/")
    command = commands.add_parser("check", help="hashes, sizes, label values and splits of converted data")
    command.add_argument("root", type=Path, help="the folder that --out named, or a site's folder in it")
    return parser


def _common(command: argparse.ArgumentParser, raw_help: str) -> None:
    command.add_argument("--raw", required=True, type=Path, help=raw_help)
    command.add_argument("--out", required=True, type=Path, help="data root to write into")
    command.add_argument("--workers", type=_count, default=2, help="processes (default 2; 0 = none but this one)")


def _name(text: str) -> str:
    if not text or text.startswith(".") or any(c in text for c in "/\\\0"):
        raise argparse.ArgumentTypeError("must be a plain name without separators")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 64:
        raise argparse.ArgumentTypeError("must be a number in 0..64")
    return int(text)


def _convert(arguments: argparse.Namespace) -> int:
    jobs, lines = _polyp_jobs(arguments) if arguments.command == "polyp" else (_pairs_jobs(arguments), [])
    summaries: list[Summary] = []
    for folder, site, recipe in jobs:
        try:
            summaries.append(_with_bar(folder, site, recipe, arguments))
        except FedfmsError as error:
            lines.append(error.line() if site in error.where else f"site {site}: {error.line()}")
    for summary in summaries:
        lines += [f"site {summary.site}, case {case}: {text}" for case, text in summary.faults]
        if not summary.images:
            lines.append(f"site {summary.site}: nothing could be converted; the output is as it was")
    _report(summaries, lines)
    return 1 if lines else 0


def _polyp_jobs(arguments: argparse.Namespace) -> tuple[list[tuple[Path, str, Recipe]], list[str]]:
    """What to convert, and lines on what cannot be."""
    _need_folder(arguments.raw, "--raw")
    found, closed = site_folders(arguments.raw, arguments.site)
    # not by name: of a folder that cannot be looked into, nobody knows that it is a site's
    lines = [f"{closed} folders in --raw cannot be read; give this user the right to, or name a --site"] * bool(closed)
    if not found:
        what = f"no folder {arguments.site!r}" if arguments.site else "no site folder"
        known = f"known sites: {list(polyp.SITES)}"
        raise DataError(f"{what} with images/ and labels/ in --raw", do="; ".join([*lines, known]))
    return [(path, path.name, polyp.RECIPE) for path in found], lines


def _pairs_jobs(arguments: argparse.Namespace) -> list[tuple[Path, str, Recipe]]:
    for part in ("images", "labels"):
        _need_folder(arguments.raw / part, f"{part}/ in --raw")
    return [(arguments.raw, arguments.site, pairs.load_recipe(arguments.dataset, arguments.rule))]


def _need_folder(path: Path, what: str) -> None:
    try:
        there = is_folder(path)
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror}", do="give this user the right to") from error
    if not there:
        raise DataError(f"{what} is not a folder", do="see `python -m preprocessing --help`")


def _with_bar(folder: Path, site: str, recipe: Recipe, arguments: argparse.Namespace) -> Summary:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(site, total=None)
        return convert_site(
            folder, arguments.raw, arguments.out, site, recipe, workers=arguments.workers,
            advance=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip


def _report(summaries: Sequence[Summary], lines: Sequence[str]) -> None:
    table = Table("site")
    for header in ("images", "empty masks", "patients", "MB", "faults"):
        table.add_column(header, justify="right")
    for s in summaries:
        table.add_row(s.site, *map(str, (s.images, s.empty, s.patients, f"{s.mb:.1f}", len(s.faults))))
    Console().print(table)
    for note in dict.fromkeys(note for s in summaries for note in s.notes):
        print(note)
    for line in lines:
        print(line)
    if lines:
        print(f"{len(lines)} faults. The key file leads from an id to its files; mend them, run it again.")


def _check(root: Path) -> int:
    _need_folder(root, "the data root")
    count = 0
    for folder in find_sites(root):
        faults = check_site(folder)
        for fault in faults:
            print(f"{folder.parent.name}/{folder.name}: {fault}")
        count += len(faults)
        print(f"{folder.parent.name}/{folder.name}: {f'{len(faults)} faults' if faults else 'as converted'}")
    return 1 if count else 0
