"""`fedfms predict`: masks of images and volumes by a trained model."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fedfms.cli.files import positive
from fedfms.errors import StudyError

if TYPE_CHECKING:
    from fedfms.inference.inputs import InputRule
    from fedfms.inference.loading import LoadedModel
    from fedfms.inference.predict import Outcome


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    parser = commands.add_parser("predict", help="masks of your images and volumes by a trained model")
    add_model_options(parser)
    parser.add_argument(
        "--input", required=True, type=Path, metavar="PATH",
        help="an image, a NIfTI volume, a folder of them, or a converted site",
    )  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, help="the folder for the masks")
    parser.add_argument("--overlay", action="store_true", help="pictures of image and masks too")
    parser.add_argument("--batch", type=positive, metavar="N", help="slices at once (default: the study's)")
    parser.set_defaults(run=_predict)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What names a model, where the rest of it lies, and how its volumes are cut."""
    parser.add_argument("--model", required=True, type=Path, help="a model that a run left, or an export's folder")
    parser.add_argument("--checkpoint", type=Path, help="the pre-trained weights that the study starts from")
    parser.add_argument("--study", help="for an older model file: a YAML file, the name of a study, or a run.json")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of that study, e.g. method=fedsam"
    )
    parser.add_argument("--run", dest="run_folder", type=Path, help="the run's folder, if the model was moved from it")
    parser.add_argument("--site-settings", type=Path, help="a fedfms_site.yaml (default: the one FEDFMS_SITE names)")
    parser.add_argument("--depth", choices=("coarsest", "third"), help="volumes: cut across which axis")
    parser.add_argument(
        "--neighbours",
        action="store_true",
        default=None,
        help="volumes: three slices as channels, as `preprocessing brain` makes them",
    )
    parser.add_argument("--window", type=float, nargs=2, metavar=("CENTRE", "WIDTH"), help="volumes: of intensities")


def load(args: argparse.Namespace, *, on_cpu: bool = False) -> tuple[LoadedModel, InputRule]:
    """The model that the options name, on the site's device or `on_cpu`, and how its volumes are cut; a warning goes to
    stderr.

    Raises:
        FedfmsError: see `read_model` and `load_model`.
    """
    from fedfms.inference.inputs import InputRule
    from fedfms.inference.loading import load_model
    from fedfms.inference.modelfile import read_model
    from fedfms.settings import load_settings

    file = read_model(args.model, study=args.study, overrides=args.set, run=args.run_folder)
    settings = load_settings(named=args.site_settings)
    loaded = load_model(file, replace(settings, device="cpu") if on_cpu else settings, args.checkpoint)
    if loaded.note:
        Console(stderr=True).print(f"fedfms: warning: {loaded.note}", soft_wrap=True, highlight=False)
    if args.window is not None and not (math.isfinite(sum(args.window)) and args.window[1] > 0):
        raise StudyError("it must be two numbers, the width above 0", where="--window", do="as in --window 40 400")
    given = {key: getattr(args, key) for key in ("depth", "neighbours", "window")}
    base = (file.rule or InputRule()).to_dict()
    return loaded, InputRule.from_dict(base | {key: value for key, value in given.items() if value is not None})


def _predict(args: argparse.Namespace) -> int:
    from fedfms.inference.inputs import find_inputs
    from fedfms.inference.outputs import OutputFolder
    from fedfms.inference.predict import predict

    loaded, rule = load(args)
    inputs = find_inputs(args.input, rule, args.out)
    file = loaded.file
    about = {"model": file.kind, "study": file.study.name, "method": file.study.method, "round": file.round}
    out = OutputFolder(args.out, about)
    batch = args.batch or loaded.study.train.batch_size
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predict", total=len(inputs))
        outcomes = predict(
            loaded, inputs, out, batch_size=batch, overlays=args.overlay, done=lambda: progress.advance(task)
        )
    Console().print(_table(loaded, outcomes))
    faults = [outcome.fault for outcome in outcomes if outcome.fault]
    for fault in faults:
        Console(stderr=True).print(f"fedfms: {fault}", soft_wrap=True, highlight=False, markup=False)
    return 1 if faults else 0


def _table(loaded: LoadedModel, outcomes: Sequence[Outcome]) -> Table:
    made = [outcome for outcome in outcomes if not outcome.fault]
    seconds = sum(outcome.seconds for outcome in made)
    slices = sum(outcome.slices for outcome in made)
    title = f"{len(made)} of {len(outcomes)} inputs, {slices} slices, {seconds:.1f} s, by the {loaded.file.name()}"
    table = Table("structure", "inputs that show it", "pixels found", title=title, title_justify="left")
    for name in loaded.study.structure_names:
        counts = [outcome.pixels[name] for outcome in made]
        table.add_row(name, str(sum(count > 0 for count in counts)), f"{sum(counts):,}")
    return table
