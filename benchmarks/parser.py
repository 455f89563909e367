"""The command line of the benchmarks."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.step import PATHS
from fedfms.cli.options import Commands, add_shared, comma, numbers, positive
from fedfms.study import AGGREGATION_RULES

_DTYPES = ("float32", "bfloat16", "float16")
_LIST = ("--method", "--backbone")
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--method": {"default": "fedmsa", "help": "default: %(default)s"},
    "--backbone": {"default": "vit_b", "help": "default: %(default)s"},
    "--size": {"type": positive, "default": 1024, "help": "side of the input in px (default: %(default)s)"},
    "--batch": {"type": positive, "default": 1, "help": "images per batch (default: %(default)s)"},
    "--steps": {"type": positive, "default": 3, "help": "steps per process; the median counts (default: %(default)s)"},
    "--repeats": {"type": positive, "default": 1, "help": "repetitions; the median counts (default: %(default)s)"},
    "--device": {"default": "", "help": "cpu, cuda:1 (default: cuda if available)"},
    "--sites": {"type": positive, "help": "number of sites (default: %(default)s)"},
}


def make_parser(description: str) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
    commands.add_parser("pages", help="render the tables in docs/results from the JSON files in docs/results/data")
    picture = commands.add_parser("phantom", help="a picture of the phantom's sites, for the docs")
    picture.add_argument("--out", required=True, type=Path, metavar="FILE", help="a PNG file")
    _add_model_benchmarks(commands)
    _add_federation_benchmarks(commands)
    return parser


def _add(
    commands: Commands, name: str, help: str, *options: str, lists: bool = False, **defaults: Any
) -> argparse.ArgumentParser:
    """Add a benchmark with shared options.

    Args:
        lists: `--method` and `--backbone` accept a,b.
        defaults: of options whose default differs.
    """
    command: argparse.ArgumentParser = commands.add_parser(name, help=help)
    for option in options:
        command.add_argument(option, **_OPTIONS[option], **({"type": comma} if lists and option in _LIST else {}))
    command.set_defaults(**defaults)
    add_shared(command, "--json")
    command.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    return command


def _add_model_benchmarks(commands: Commands) -> None:
    model, timed = (*_LIST, "--size"), ("--steps", "--repeats", "--device")
    what = "seconds and peak memory of"
    step = _add(commands, "step", f"{what} a training step", *model, "--batch", *timed, lists=True)
    predict = _add(commands, "predict", f"{what} predicting one image", *model, *timed, lists=True)
    epoch = _add(
        commands, "epoch", "training steps with a cached frozen prefix, as in a second epoch", *model, "--batch",
        *timed, backbone="tiny_vit", batch=4,
    )  # fmt: skip
    epoch.add_argument(
        "--adapter-blocks", type=comma, default="all", metavar="A,B", help="e.g. all,last:4,none (default: all)"
    )
    memory = _add(commands, "memory", "live bytes of a training step, counted on the meta device", *model, "--batch")
    for command in (step, predict, memory):
        paths = [path for path in PATHS if command is not predict or "checkpointed" not in path]
        if command is memory:
            paths.remove("plain-tuned")  # the same memory as plain
        _choose(command, "--paths", paths, [path for path in paths if not path.startswith("plain-")])
    for command in (step, predict):
        _choose(command, "--dtypes", _DTYPES, _DTYPES[:2])
    _choose(epoch, "--paths", ("plain", "fast"), ("plain", "fast"))
    _choose(epoch, "--dtypes", _DTYPES, ("float32",))
    loader = _add(commands, "loader", "images per second by settings of the loader", "--size", "--batch", batch=6)
    loader.add_argument("--images", type=positive, default=40, help="number of images (default: 40)")
    loader.add_argument("--workers", type=numbers, default="0,1,2", help="loader processes (default: 0,1,2)")


def _add_federation_benchmarks(commands: Commands) -> None:
    _add(commands, "compression", "bytes, seconds and error of each codec", *_LIST, "--repeats", repeats=3)
    _add(
        commands, "aggregate", "seconds to aggregate updates, and to read them once", *_LIST, "--sites", "--repeats",
        sites=64, repeats=3,
    )  # fmt: skip
    round_ = _add(
        commands, "round", "seconds of rounds in NVFLARE's simulator by part", *_LIST, "--size", "--sites", sites=2
    )
    round_.add_argument("--rounds", type=positive, default=2, help="the first also opens data and builds models")
    round_.add_argument("--threads", type=positive, default=1, help="sites in parallel; each needs a step's memory")
    attack = _add(commands, "attack", "Dice by aggregation rule with a Byzantine site, on the phantom")
    _choose(attack, "--rules", AGGREGATION_RULES, AGGREGATION_RULES)
    add_shared(attack, "--set")


def _choose(command: argparse.ArgumentParser, option: str, known: Sequence[str], default: Sequence[str]) -> None:
    """Add an option that accepts some of the known words."""
    words = list(known)
    command.add_argument(option, type=_some_of(words), default=list(default), help=f"some of {','.join(words)}")


def _some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if not set(chosen) <= set(known):
            raise argparse.ArgumentTypeError(f"must be some of {','.join(known)}")
        return chosen

    return parse
