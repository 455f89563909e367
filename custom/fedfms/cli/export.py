"""`fedfms export`: a trained model as files that are independent of its run."""

import argparse
from pathlib import Path

from fedfms.cli.options import Commands, add_command
from fedfms.cli.predict import add_model_options, load

_FORMATS = "safetensors,onnx,bundle"


def add_commands(commands: Commands) -> None:
    """Add `fedfms export`."""
    parser = add_command(
        commands, "export", _export, help="a trained model as safetensors with a model card, ONNX and MONAI bundle",
        example="fedfms export --model FL_global_model.pt --checkpoint weights/lite_medsam.pth --out EXPORT",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--format", type=_formats, default=_formats(_FORMATS), metavar="A,B", help=f"default: {_FORMATS}"
    )
    parser.add_argument("--licence", default="not stated", help="licence of the model, for its card")


def _formats(text: str) -> list[str]:
    chosen = [name for name in text.split(",") if name]
    if not chosen or not set(chosen) <= set(_FORMATS.split(",")):
        raise argparse.ArgumentTypeError(f"must be some of {_FORMATS}")
    return chosen


def _export(args: argparse.Namespace) -> str:
    from fedfms.inference.export import export

    loaded, rule = load(args, on_cpu=True)  # a traced network stores its device
    names = export(loaded, rule, args.out, formats=args.format, licence=args.licence)
    return "\n".join([f"{args.out}: {loaded.file.name()}", *names])
