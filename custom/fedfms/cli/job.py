"""`fedfms job build`: NVFLARE job folders of a study, one per method."""

import argparse
from pathlib import Path

from fedfms.cli.options import Commands, add_command
from fedfms.cli.study import add_study_options, description, resolved_study, suppression_note


def add_commands(commands: Commands) -> None:
    """Add `fedfms job`."""
    job = commands.add_parser("job", help="build NVFLARE jobs").add_subparsers(required=True, metavar="COMMAND")
    build = add_command(
        job, "build", _build, help="build the job folder of a method on a study",
        example="fedfms job build fedmsa --study polyp --checkpoint weights/lite_medsam.pth --rounds 5 --out polyp-job",
    )  # fmt: skip
    build.add_argument("method", help="see `fedfms list`; all: every method, in OUT/METHOD")
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="the job folder to write")
    add_study_options(build)
    build.add_argument("--bundle-code", action="store_true", help="copy this package into the job")


def _build(args: argparse.Namespace) -> None:
    from fedfms.flare.job import build_job
    from fedfms.methods import METHODS

    notes: list[str] = []
    for name in sorted(METHODS) if args.method == "all" else [args.method]:
        study = resolved_study(args, name)
        out = build_job(study, args.out / name if args.method == "all" else args.out, bundle_code=args.bundle_code)
        print(f"{out}: {description(study)}")
        notes += suppression_note(study)
    for note in dict.fromkeys(notes):
        print(note)
