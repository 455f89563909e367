"""`fedfms sites`: how different a study's sites are, before training; on one machine, or merged from the sites' own."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfms.cli.files import comma, read_json, settings_here, write
from fedfms.errors import DataError, StudyError, TooFewError
from fedfms.study import PHANTOM, PHANTOM_SITES, check_sites_known, find_study, load_study

if TYPE_CHECKING:
    from fedfms.data.profile import Profile
    from fedfms.settings import SiteSettings
    from fedfms.study import Study

_EXAMPLES = """\
examples:
  fedfms sites polyp --root DATA --out REPORT                  all sites' data on one machine
  fedfms sites polyp --site NAME --out-file NAME.json          at each site: numbers of many patients, to hand over
  fedfms sites --merge a.json b.json --out REPORT              at the lead
"""
_NO_EDGE = 10_000  # columns


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    sites = commands.add_parser(
        "sites", help="how different the sites are: sizes, structures, grey values, distances; before training",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sites.add_argument("study", nargs="?", help="a YAML file, or the name of a packaged study")
    sites.add_argument("--root", type=Path, help="the data root (default: the one in this site's settings)")
    sites.add_argument("--site-settings", type=Path, help="a fedfms_site.yaml (default: the one FEDFMS_SITE names)")
    sites.add_argument("--sites", type=comma, default=[], help="a,b,c (default: the study's)")
    sites.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    sites.add_argument(
        "--min-cases", type=_at_least_two, default=None, metavar="N",
        help="nothing is told of fewer patients (default: the study's rule, 5); with --merge: none of fewer is taken",
    )  # fmt: skip
    sites.add_argument("--site", metavar="NAME", help="this site alone, for --out-file")
    sites.add_argument("--out-file", type=Path, metavar="FILE", help="where to write what this site hands over: JSON")
    sites.add_argument("--merge", nargs="+", type=Path, default=[], metavar="FILE", help="what the sites handed over")
    sites.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    sites.add_argument("--out", type=Path, metavar="DIR", help="write sites.json, .md, .png and .svg here")
    sites.set_defaults(run=_sites)


def _at_least_two(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError("must be a number, 2 or more: of one patient it would be the patient's own")
    return int(text)


def _sites(args: argparse.Namespace) -> str | None:
    from fedfms.data.profile import MIN_CASES

    if bool(args.merge) == bool(args.study) or (args.site is None) != (args.out_file is None):
        ways = "STUDY, STUDY --site NAME --out-file FILE, or --merge FILE ..."
        raise StudyError("one of three ways is needed", where="fedfms sites", do=ways)
    if args.site is not None:
        return _hand_over(args)
    profiles, notes = (_merged(args.merge, args.min_cases or MIN_CASES), []) if args.merge else _all_here(args)
    _show(args, profiles, notes)
    return None


def _hand_over(args: argparse.Namespace) -> str:
    """At a site: what is printed is what the file holds, and nothing else."""
    study, settings = _opened(args)
    text = json.dumps(_profile(study, args.site, settings, args.min_cases).to_dict(), indent=1)
    write(args.out_file, text + "\n")
    return f"{text}\n{args.out_file}: all that is above, and nothing else"


def _merged(paths: list[Path], least: int) -> list[Profile]:
    from fedfms.data.profile import Profile

    profiles = []
    for path in paths:
        try:
            found = Profile.from_dict(read_json(path))
        except DataError as error:
            raise error.at(path.name) from error
        if found.min_cases < least:
            raise DataError(
                f"it tells of {found.min_cases} patients", where=path.name,
                do=f"make it with --min-cases {least}, or merge with --min-cases {found.min_cases}",
            )  # fmt: skip
        profiles.append(found)
    return profiles


def _all_here(args: argparse.Namespace) -> tuple[list[Profile], list[str]]:
    """Profiles of all sites whose data are here, and a note of each that has too few patients."""
    study, settings = _opened(args)
    names = args.sites or [*study.sites, *study.held_out]
    if not args.sites and not study.sites:
        if study.data.dataset != PHANTOM:
            raise StudyError("the study names no sites", where=study.name, do="name them with --sites a,b,c")
        names = [*PHANTOM_SITES, *study.held_out]
    profiles, notes = [], []
    for name in names:
        try:
            profiles.append(_profile(study, name, settings, args.min_cases))
        except TooFewError as error:
            notes.append(error.line())
    if not profiles:
        raise TooFewError("; ".join(notes))
    return profiles, notes


def _opened(args: argparse.Namespace) -> tuple[Study, SiteSettings]:
    study = load_study(find_study(args.study), overrides=args.set)
    check_sites_known(study, args.sites, "--sites")
    check_sites_known(study, [] if args.site is None else [args.site], "--site")
    settings = settings_here(args.root, args.site_settings)
    # Each image is read once: none is kept.
    return dataclasses.replace(study, data=dataclasses.replace(study.data, cache=False)), settings


def _profile(study: Study, site: str, settings: SiteSettings, least: int | None) -> Profile:
    """Of no fewer patients than the command line says, else the study; nor than the site's own settings say."""
    from fedfms.data import open_site
    from fedfms.data.profile import profile

    return profile(open_site(study, site, settings), max(least or study.federation.min_cases, settings.min_cases, 2))


def _show(args: argparse.Namespace, profiles: list[Profile], notes: list[str]) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    from fedfms.data.distances import compare
    from fedfms.reporting.sites import figure, markdown, rich_tables

    compared = compare(profiles)
    tables, console = rich_tables(compared), Console()
    if not sys.stdout.isatty():  # nothing is folded
        free = console.options.update(max_width=_NO_EDGE)
        console.width = max(Measurement.get(console, free, table).maximum for table in tables)
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(f"Note: {note}.", markup=False, highlight=False, soft_wrap=True)
    text = json.dumps({**compared, "notes": notes}, indent=1, allow_nan=False) + "\n"
    if args.json is not None:
        write(args.json, text)
    if args.out is not None:
        files: dict[str, str | bytes] = {"sites.json": text, "sites.md": markdown(compared, notes), **figure(compared)}
        for name, content in files.items():
            write(args.out / name, content)
