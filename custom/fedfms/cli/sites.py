"""`fedfms sites`: how much a study's sites differ, before training."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedfms.cli.files import site_settings, write
from fedfms.cli.options import Commands, add_command, add_shared, at_least
from fedfms.errors import DataError, StudyError, TooFewError
from fedfms.schema import read_json
from fedfms.study import PHANTOM, PHANTOM_SITES, check_sites_known, find_study, load_study

if TYPE_CHECKING:
    from fedfms.data.profile import Profile
    from fedfms.settings import SiteSettings
    from fedfms.study import Study

_DESCRIPTION = """\
Compare the sites of a study before training: sizes, structures, grey values, distances between sites. One of:

  fedfms sites STUDY                                data of all sites on this machine
  fedfms sites STUDY --site NAME --out-file FILE    at a site: statistics over many patients, to send to the lead
  fedfms sites --merge FILE ...                     at the lead: compare the sites' files
"""
_UNLIMITED = 10_000  # columns


def add_commands(commands: Commands) -> None:
    """Add `fedfms sites`."""
    sites = add_command(
        commands, "sites", _sites, help="compare the sites before training: sizes, structures, grey values, distances",
        description=_DESCRIPTION, example="fedfms sites polyp --root DATA --out REPORT",
    )  # fmt: skip
    sites.add_argument("study", nargs="?", metavar="STUDY", help="a YAML file, or the name of a packaged study")
    add_shared(sites, "--root", "--site-settings", "--sites", "--set", "--json")
    sites.add_argument(
        "--min-cases", type=at_least(2), metavar="N",
        help="suppress statistics over fewer patients (default: the study's rule, 5); with --merge: reject such files",
    )  # fmt: skip
    sites.add_argument("--site", metavar="NAME", help="this site only; needs --out-file")
    sites.add_argument("--out-file", type=Path, metavar="FILE", help="the JSON file to send to the lead")
    sites.add_argument("--merge", nargs="+", type=Path, default=[], metavar="FILE", help="files of the sites")
    sites.add_argument("--out", type=Path, metavar="DIR", help="write sites.json, .md, .png and .svg into this folder")


def _sites(args: argparse.Namespace) -> str | None:
    from fedfms.data.profile import MIN_CASES

    if bool(args.merge) == bool(args.study) or (args.site is None) != (args.out_file is None):
        forms = "STUDY, STUDY --site NAME --out-file FILE, or --merge FILE ..."
        raise StudyError("exactly one of three forms is needed", where="fedfms sites", do=forms)
    if args.site is not None:
        return _write_profile(args)
    profiles, notes = (_merged(args.merge, args.min_cases or MIN_CASES), []) if args.merge else _all_profiles(args)
    _show(args, profiles, notes)
    return None


def _write_profile(args: argparse.Namespace) -> str:
    """At a site: the output is exactly the content of the file."""
    study, settings = _open(args)
    text = json.dumps(_profile(study, args.site, settings, args.min_cases).to_dict(), indent=1)
    write(args.out_file, text + "\n")
    return f"{text}\n{args.out_file}: contains exactly the text above"


def _merged(paths: list[Path], min_cases: int) -> list[Profile]:
    from fedfms.data.profile import Profile

    profiles = []
    for path in paths:
        try:
            found = Profile.from_dict(read_json(path, StudyError))
        except DataError as error:
            raise error.at(path.name) from error
        if found.min_cases < min_cases:
            raise DataError(
                f"it contains statistics over {found.min_cases} patients", where=path.name,
                do=f"make it with --min-cases {min_cases}, or merge with --min-cases {found.min_cases}",
            )  # fmt: skip
        profiles.append(found)
    return profiles


def _all_profiles(args: argparse.Namespace) -> tuple[list[Profile], list[str]]:
    """Profiles of all sites whose data are on this machine, and a note for each site with too few patients."""
    study, settings = _open(args)
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


def _open(args: argparse.Namespace) -> tuple[Study, SiteSettings]:
    study = load_study(find_study(args.study), overrides=args.set)
    check_sites_known(study, args.sites or (), "--sites")
    check_sites_known(study, [] if args.site is None else [args.site], "--site")
    # Each image is read once, so nothing is cached.
    return replace(study, data=replace(study.data, cache=False)), site_settings(args.root, args.site_settings)


def _profile(study: Study, site: str, settings: SiteSettings, min_cases: int | None) -> Profile:
    """A site's profile; its minimum of patients is the command line's, else the study's, and at least the site's."""
    from fedfms.data import open_site
    from fedfms.data.profile import profile

    least = max(min_cases or study.federation.min_cases, settings.min_cases, 2)
    return profile(open_site(study, site, settings), least)


def _show(args: argparse.Namespace, profiles: list[Profile], notes: list[str]) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    from fedfms.data.distances import compare
    from fedfms.reporting.sites import figure, markdown, rich_tables

    compared = compare(profiles)
    tables, console = rich_tables(compared), Console()
    if not sys.stdout.isatty():  # do not wrap
        options = console.options.update(max_width=_UNLIMITED)
        console.width = max(Measurement.get(console, options, table).maximum for table in tables)
    for table in tables:
        console.print(table)
    for note in notes:
        print(f"Note: {note}.")
    text = json.dumps({**compared, "notes": notes}, indent=1, allow_nan=False) + "\n"
    if args.json is not None:
        write(args.json, text)
    if args.out is not None:
        files: dict[str, str | bytes] = {"sites.json": text, "sites.md": markdown(compared, notes), **figure(compared)}
        for name, content in files.items():
            write(args.out / name, content)
