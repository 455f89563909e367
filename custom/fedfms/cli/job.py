"""`fedfms job build`: NVFLARE job folders of a study, one per method."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedfms.cli import nnunet
from fedfms.cli.options import Commands, add_command, add_shared, at_least
from fedfms.errors import StudyError
from fedfms.study import PHANTOM, PHANTOM_SITES, Study, check_sites_known, find_study, load_study

_MIN_SUGGESTED = 3  # a mean over fewer images discloses the score of each


def add_commands(commands: Commands) -> None:
    """Add `fedfms job`."""
    job = commands.add_parser("job", help="build NVFLARE jobs").add_subparsers(required=True, metavar="COMMAND")
    build = add_command(
        job, "build", _build, help="build the job folder of a method on a study",
        example="fedfms job build fedmsa --study polyp --checkpoint weights/lite_medsam.pth --rounds 5 --out polyp-job",
    )  # fmt: skip
    build.add_argument("method", help="see `fedfms list`; all: every method, in OUT/METHOD")
    build.add_argument("--study", required=True, help="a YAML file, or the name of a packaged study")
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="the job folder to write")
    add_shared(build, "--preset", "--backbone", "--checkpoint", "--rounds", "--sites", "--held-out", "--set")
    build.add_argument("--plan", type=Path, metavar="FILE", help="nnU-Net's plan, made by `fedfms plan`")
    build.add_argument("--seed", type=at_least(0), metavar="N", help="seed of the run (default: the study's)")
    build.add_argument("--phantom", action="store_true", help="use the phantom images instead of the study's data")
    build.add_argument("--bundle-code", action="store_true", help="copy this package into the job")


def _build(args: argparse.Namespace) -> None:
    from fedfms.flare.job import build_job
    from fedfms.methods import METHODS, make_method, resolve_study
    from fedfms.reporting.cost.traffic import plan_traffic
    from fedfms.settings import SiteSettings
    from fedfms.training.build import check_weights

    notes: list[str] = []
    for name in sorted(METHODS) if args.method == "all" else [args.method]:
        study = _study(args, name)
        study = resolve_study(study, make_method(name, study.method_options))
        if args.checkpoint is not None:  # check now, not later at each site
            check_weights(study, SiteSettings(checkpoints=args.checkpoint.resolve().parent))
        out = build_job(study, args.out / name if args.method == "all" else args.out, bundle_code=args.bundle_code)
        model = f"{study.model.backbone} at {study.model.input_px} px from {study.model.initial_weights}"
        pooled = "site `pool` trains on the pooled data of all sites, without federation"
        cost = pooled if METHODS[name].centralised else plan_traffic(study).text()
        print(f"{out}: {name} on {study.name}, {model}; {cost}")
        notes += _suppression_note(study)
    for note in dict.fromkeys(notes):
        print(note)


def _suppression_note(study: Study) -> list[str]:
    """A note if the sites will have too few images for scoring, so that their scores will be suppressed."""
    from fedfms.data.splits import scored

    images = [study.data.max_images, study.data.phantom_images if study.data.dataset == PHANTOM else None]
    most, least = min((n for n in images if n is not None), default=None), study.federation.min_cases
    if most is None or (aside := scored(study.data.protocol, most)) >= least:
        return []
    lower = f", or use --set federation.min_cases={aside} if that is permitted" if aside >= _MIN_SUGGESTED else ""
    return [
        f"note: of {most} images a site scores about {aside}, and scores over fewer than {least} images are "
        f"suppressed: no curve, no best model; provide more images{lower}"
    ]


def _study(args: argparse.Namespace, method: str) -> Study:
    """The study of the command line, for one method."""
    from fedfms.flare.job import with_checkpoint
    from fedfms.methods import METHODS

    path, held_out, sites = find_study(args.study), args.held_out, args.sites
    base = load_study(path, preset=args.preset, overrides=args.set)
    if not args.phantom:  # the phantom accepts any site name
        check_sites_known(base, sites or (), "--sites")
        check_sites_known(base, held_out or (), "--held-out")
    if sites is None and held_out:
        sites = _without(held_out, base)
    pooled = method in METHODS and METHODS[method].centralised
    if pooled and not sites and not base.sites and (args.phantom or base.data.dataset == PHANTOM):
        # pooled data must have named sites
        excluded = base.held_out if held_out is None else held_out
        sites = [site for site in PHANTOM_SITES if site not in excluded]
    return load_study(
        path, preset=args.preset, overrides=args.set,
        **{
            "method": method,
            "seed": args.seed,
            "sites": sites,
            "held_out": held_out,
            "model.backbone": args.backbone,
            "method_options.plan": None if args.plan is None else nnunet.read_plan(args.plan),
            "train.rounds": args.rounds,
            "data.dataset": PHANTOM if args.phantom else None,
            **({} if args.checkpoint is None else with_checkpoint(args.checkpoint)),
        },
    )  # fmt: skip


def _without(held_out: Sequence[str], study: Study) -> list[str]:
    """The study's training sites except the held-out ones; empty if the study names no sites."""
    remaining = [name for name in study.sites if name not in held_out]
    if study.sites and not remaining:
        raise StudyError("every site is held out", where=study.name, do="leave one that trains")
    return remaining
