"""`fedfms predict`: masks of images and volumes by a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fedfms.cli.options import Commands, add_command, add_shared, positive

if TYPE_CHECKING:
    from fedfms.inference.inputs import InputRule
    from fedfms.inference.loading import LoadedModel
    from fedfms.inference.predict import Outcome


def add_commands(commands: Commands) -> None:
    """Add `fedfms predict`."""
    parser = add_command(
        commands, "predict", _predict, help="masks of your images and volumes by a trained model",
        example="fedfms predict --model EXPORT --input IMAGES --out MASKS --overlay",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument(
        "--input", required=True, type=Path, metavar="PATH",
        help="an image, a NIfTI volume, a folder of them, or a converted site",
    )  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder for the masks")
    parser.add_argument("--overlay", action="store_true", help="also write pictures of image and mask")
    parser.add_argument("--batch", type=positive, metavar="N", help="slices per batch (default: the study's)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a model and say how volumes become slices."""
    parser.add_argument("--model", required=True, type=Path, metavar="PATH", help="a model file of a run, or an export")
    parser.add_argument("--study", help="for an older model file: a YAML file, the name of a study, or a run.json")
    parser.add_argument("--run", dest="run_folder", type=Path, metavar="DIR", help="the run of a moved model file")
    add_shared(parser, "--checkpoint", "--set", "--site-settings")
    parser.add_argument("--depth", choices=("coarsest", "third"), help="volumes: the axis across which to cut")
    parser.add_argument(
        "--neighbours", action="store_true", default=None,
        help="volumes: three slices as channels, as `fedfms prepare brain` writes them",
    )  # fmt: skip
    parser.add_argument("--window", type=float, nargs=2, metavar=("CENTRE", "WIDTH"), help="volumes: intensity window")


def load(args: argparse.Namespace, *, on_cpu: bool = False) -> tuple[LoadedModel, InputRule]:
    """The model that the options name, on the site's device or `on_cpu`, and its rule for volumes; warnings go to
    stderr.

    Raises:
        FedfmsError: as `read_model` and `load_model`.
    """
    from fedfms.inference.loading import open_model
    from fedfms.settings import load_settings

    settings = load_settings(named=args.site_settings)
    loaded, rule = open_model(
        args.model, checkpoint=args.checkpoint, study=args.study, overrides=args.set, run=args.run_folder,
        settings=replace(settings, device="cpu") if on_cpu else settings,
        rule={key: value for key in ("depth", "neighbours", "window") if (value := getattr(args, key)) is not None},
    )  # fmt: skip
    if loaded.note:
        print(f"fedfms: warning: {loaded.note}", file=sys.stderr)
    return loaded, rule


def _predict(args: argparse.Namespace) -> int:
    from fedfms.inference.inputs import find_inputs
    from fedfms.inference.outputs import OutputFolder
    from fedfms.inference.predict import predict

    loaded, rule = load(args)
    inputs = find_inputs(args.input, rule, args.out)
    out = OutputFolder(args.out, loaded.file.about())
    batch = args.batch or loaded.study.train.batch_size
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predict", total=len(inputs))
        outcomes = predict(
            loaded, inputs, out, batch_size=batch, overlays=args.overlay, done=lambda: progress.advance(task)
        )
    Console().print(_table(loaded, outcomes))
    errors = [outcome.error for outcome in outcomes if outcome.error]
    for error in errors:
        print(f"fedfms: {error}", file=sys.stderr)
    return 1 if errors else 0


def _table(loaded: LoadedModel, outcomes: Sequence[Outcome]) -> Table:
    made = [outcome for outcome in outcomes if not outcome.error]
    seconds = sum(outcome.seconds for outcome in made)
    slices = sum(outcome.slices for outcome in made)
    title = f"{len(made)} of {len(outcomes)} inputs, {slices} slices, {seconds:.1f} s, by the {loaded.file.name()}"
    table = Table("structure", "inputs that show it", "pixels found", title=title, title_justify="left")
    for name in loaded.study.structure_names:
        counts = [outcome.pixels[name] for outcome in made]
        table.add_row(name, str(sum(count > 0 for count in counts)), f"{sum(counts):,}")
    return table
