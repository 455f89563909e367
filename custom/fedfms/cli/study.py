"""The study that a command line describes, for `fedfms job build` and `fedfms run`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedfms.cli import nnunet
from fedfms.cli.options import add_shared, at_least
from fedfms.errors import StudyError
from fedfms.study import PHANTOM, PHANTOM_SITES, Study, check_sites_known, find_study, load_study

_MIN_SUGGESTED = 3  # a mean over fewer images discloses the score of each


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a study and change its keys."""
    parser.add_argument("--study", required=True, help="a YAML file, or the name of a packaged study")
    add_shared(parser, "--preset", "--backbone", "--checkpoint", "--rounds", "--sites", "--held-out", "--set")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="nnU-Net's plan, made by `fedfms plan`")
    parser.add_argument("--seed", type=at_least(0), metavar="N", help="seed of the run (default: the study's)")
    parser.add_argument("--phantom", action="store_true", help="use the phantom images instead of the study's data")


def resolved_study(args: argparse.Namespace, method: str, *, named_sites: bool = False) -> Study:
    """The study of the command line, resolved for one method.

    Args:
        named_sites: name the sites of a phantom study that names none.

    Raises:
        StudyError, CheckpointError: the options or the checkpoint do not fit.
    """
    from fedfms.methods import make_method, resolve_study
    from fedfms.settings import SiteSettings
    from fedfms.training.build import check_weights

    study = _study(args, method, named_sites)
    study = resolve_study(study, make_method(method, study.method_options))
    if args.checkpoint is not None:  # check now, not later at each site
        check_weights(study, SiteSettings(checkpoints=args.checkpoint.resolve().parent))
    return study


def description(study: Study) -> str:
    """One line: the method, the model, and what a round sends."""
    from fedfms.methods import METHODS
    from fedfms.reporting.cost.traffic import plan_traffic

    model = f"{study.model.backbone} at {study.model.input_px} px from {study.model.initial_weights}"
    if study.model.prompt_tokens == "whole_image":
        model += " (prompt tokens of a box around the whole image: its decoder was trained with prompts)"
    pooled = "site `pool` trains on the pooled data of all sites, without federation"
    cost = pooled if METHODS[study.method].centralised else plan_traffic(study).text()
    return f"{study.method} on {study.name}, {model}; {cost}"


def suppression_note(study: Study) -> list[str]:
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


def _study(args: argparse.Namespace, method: str, named_sites: bool) -> Study:
    """The study of the command line, for one method; pooled data must have named sites as well."""
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
    if (pooled or named_sites) and not sites and not base.sites and (args.phantom or base.data.dataset == PHANTOM):
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
