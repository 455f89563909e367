"""`fedfms export`: a trained model as files that go on without the run that made it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedfms.cli.predict import add_model_options, load

_FORMATS = "safetensors,onnx,bundle"


def add_commands(commands: Any) -> None:
    """Add it to the subparsers of `fedfms`."""
    parser = commands.add_parser("export", help="a trained model as safetensors with its card, ONNX, MONAI bundle")
    add_model_options(parser)
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument(
        "--format", type=_formats, default=_formats(_FORMATS), metavar="A,B", help=f"default: {_FORMATS}"
    )
    parser.add_argument("--licence", default="not stated", help="of the model, for its card")
    parser.set_defaults(run=_export)


def _formats(text: str) -> list[str]:
    chosen = [name for name in text.split(",") if name]
    if not chosen or not set(chosen) <= set(_FORMATS.split(",")):
        raise argparse.ArgumentTypeError(f"must be some of {_FORMATS}")
    return chosen


def _export(args: argparse.Namespace) -> str:
    from fedfms.inference.export import export

    loaded, rule = load(args, on_cpu=True)  # a traced network remembers its device
    names = export(loaded, rule, args.out, formats=args.format, licence=args.licence)
    return "\n".join([f"{args.out}: {loaded.file.name()}", *names])
