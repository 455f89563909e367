"""The study that a command line describes, for `fedfms job build` and `fedfms run`."""

import argparse
from pathlib import Path

from fedfms.cli import nnunet
from fedfms.cli.options import add_shared, at_least
from fedfms.study import PHANTOM, Study, check_sites_known, find_study, load_study

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
    from fedfms.experiments.choice import choose_study

    phantom = {"data.dataset": PHANTOM} if args.phantom else {}
    if not args.phantom:  # the phantom accepts any site name
        base = load_study(find_study(args.study), preset=args.preset, overrides=args.set)
        check_sites_known(base, args.sites or (), "--sites")
        check_sites_known(base, args.held_out or (), "--held-out")
    return choose_study(
        args.study, method, preset=args.preset, overrides=args.set, sites=args.sites, held_out=args.held_out,
        checkpoint=args.checkpoint, named_sites=named_sites,
        **{
            "seed": args.seed,
            "model.backbone": args.backbone,
            "method_options.plan": None if args.plan is None else nnunet.read_plan(args.plan),
            "train.rounds": args.rounds,
            **phantom,
        },
    )  # fmt: skip


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
