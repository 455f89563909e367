"""`fedfms splits`: which images are in which part, as counts and digests without any id."""

import argparse
from pathlib import Path

from fedfms.cli.files import site_settings
from fedfms.cli.options import Commands, add_command, add_shared
from fedfms.errors import StudyError
from fedfms.study import check_sites_known, find_study, load_study


def add_commands(commands: Commands) -> None:
    """Add `fedfms splits`."""
    parser = add_command(
        commands, "splits", _splits, example="fedfms splits polyp --root DATA --check polyp.json",
        help="which images are in which part, as counts and digests without any id",
        description="Write a study's splits, or compare them with a file: counts and digests, no image and no id.",
    )  # fmt: skip
    add_shared(parser, "study", "--root", "--sites", "--set", "--seeds")
    parser.add_argument("--protocol", action="append", choices=("held-out", "personal"), help="default: both")
    parser.add_argument("--of", default="", metavar="TEXT", help="a description of the images, stored in the file")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help="write to this file (default: print)")
    where.add_argument("--check", type=Path, metavar="FILE", help="compare with this file; exit code 1 if they differ")


def _splits(args: argparse.Namespace) -> str | int:
    from fedfms.data import splitfile

    study = load_study(find_study(args.study), overrides=args.set)
    check_sites_known(study, args.sites or (), "--sites")
    settings = site_settings(args.root)
    if args.check is not None:
        content = splitfile.load_splits(args.check)
        found = splitfile.compare_splits(
            study, settings, content, args.sites or (), args.protocol or (), args.seeds or ()
        )
        print("\n".join([*found.notes, *(found.differences or ["the same splits"])]))
        return 1 if found.differences else 0
    if not args.sites and not study.sites:
        raise StudyError("the study names no sites that train", where=study.name, do="name them all with --sites a,b,c")
    sites = args.sites or [*study.sites, *study.held_out]
    protocols, seeds = args.protocol or ["held-out", "personal"], args.seeds or [0, 1, 2]
    made = splitfile.make_splits(study, settings, sites, protocols, seeds, args.of)
    if args.out is None:
        return splitfile.to_text(made).removesuffix("\n")
    splitfile.save_splits(made, args.out)
    return str(args.out)
