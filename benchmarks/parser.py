"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.step import PATHS
from fedfms.study import AGGREGATION_RULES


def make_parser(text: str) -> argparse.ArgumentParser:
    """Of `python -m benchmarks`; `text` is its help."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
    commands.add_parser("pages", help="make the tables in docs/results again from the JSON beside them")
    picture = commands.add_parser("phantom", help="a picture of the phantom's sites, for the docs")
    picture.add_argument("--out", required=True, type=Path, help="a PNG file")
    studies = [_add_compare(commands), _add_attack(commands)]
    for command in (*_add_models(commands), *_add_server(commands), *_add_data(commands), *studies):
        command.add_argument("--json", type=Path, metavar="FILE", help="a file to write as well")
        command.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_models(commands: Any) -> list[argparse.ArgumentParser]:
    step = commands.add_parser("step", help="seconds and peak memory of a training step, each path; random weights")
    predict = commands.add_parser("predict", help="the same of the prediction of one image")
    epoch = commands.add_parser("epoch", help="a step with a kept frozen prefix, as from the second epoch on")
    memory = commands.add_parser("memory", help="live bytes of a training step, counted and not measured")
    for command in (step, predict, epoch, memory):
        _model(command, "tiny_vit" if command is epoch else "vit_b", many=command in (step, predict))
    for command in (step, epoch, memory):
        command.add_argument("--batch", type=_count, default=4 if command is epoch else 1)
    for command in (step, predict, epoch):
        command.add_argument("--steps", type=_count, default=3, help="in a process; the median counts")
        command.add_argument("--repeats", type=_count, default=1, help="processes a row, the rows in turn")
        command.add_argument("--device", default="", help="cpu, cuda:1 (default: the card where there is one)")
    for command in (step, predict, memory):
        paths = [path for path in PATHS if command is not predict or "checkpointed" not in path]
        if command is memory:
            paths.remove("plain-tuned")  # which takes as much as plain
        default = [path for path in paths if not path.startswith("plain-")]
        command.add_argument("--paths", type=_some_of(paths), default=default, help=f"of {','.join(paths)}")
    dtypes = ["float32", "bfloat16", "float16"]
    for command in (step, predict):
        command.add_argument("--dtypes", type=_some_of(dtypes), default=dtypes[:2], help=f"of {','.join(dtypes)}")
    return [step, predict, epoch, memory]


def _add_server(commands: Any) -> list[argparse.ArgumentParser]:
    wire = commands.add_parser("wire", help="bytes of an update in each form, seconds to write and to read it")
    aggregate = commands.add_parser("aggregate", help="a round's mean at the server, beside reading the updates once")
    aggregate.add_argument("--sites", type=_count, default=64)
    for command in (wire, aggregate):
        command.add_argument("--method", default="fedmsa")
        command.add_argument("--backbone", default="vit_b")
        command.add_argument("--repeats", type=_count, default=3)
    round_ = commands.add_parser("round", help="rounds in NVFLARE's simulator by part, one image a site")
    _model(round_, "vit_b")
    round_.add_argument("--sites", type=_count, default=2)
    round_.add_argument("--rounds", type=_count, default=2, help="the first one opens data and builds models as well")
    round_.add_argument("--threads", type=_count, default=1, help="sites at once; each needs a step's memory")
    return [wire, aggregate, round_]


def _add_data(commands: Any) -> list[argparse.ArgumentParser]:
    loader = commands.add_parser("loader", help="images a second by the loader's settings, on the phantom")
    loader.add_argument("--batch", type=_count, default=6)
    loader.add_argument("--workers", type=lambda text: [int(count) for count in text.split(",")], default=[0, 1, 2])
    loader.add_argument("--images", type=_count, default=40, help="at most so many are loaded")
    loader.add_argument("--size", type=_count, default=1024, help="input, px a side")
    return [loader]


def _add_attack(commands: Any) -> argparse.ArgumentParser:
    attack: argparse.ArgumentParser = commands.add_parser(
        "attack", help="one of five sites flips signs or labels: Dice by each rule, on the phantom"
    )
    attack.add_argument(
        "--rules",
        type=_some_of(list(AGGREGATION_RULES)),
        default=list(AGGREGATION_RULES),
        help=f"of {','.join(AGGREGATION_RULES)}",
    )
    attack.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    return attack


def _add_compare(commands: Any) -> argparse.ArgumentParser:
    compare: argparse.ArgumentParser = commands.add_parser(
        "compare", help="methods on a study: Dice, MB and seconds a round, over seeds"
    )
    compare.add_argument("study", help="a YAML file, or the name of a packaged study")
    compare.add_argument("--methods", type=_list, default=["all"], help="a,b (default: all)")
    compare.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    compare.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    compare.add_argument("--data-root", type=Path)
    compare.add_argument("--checkpoints", type=Path)
    compare.add_argument("--work", type=Path, required=True, help="a folder that is kept; a cut run goes on there")
    compare.add_argument("--jobs", type=_count, default=1, help="cells at once")
    return compare


def _model(command: argparse.ArgumentParser, backbone: str, *, many: bool = False) -> None:
    if many:
        command.add_argument("--method", type=_list, default=["fedmsa"], help="a,b: one after another")
        command.add_argument("--backbone", type=_list, default=[backbone], help="a,b: each method with each")
    else:
        command.add_argument("--method", default="fedmsa")
        command.add_argument("--backbone", default=backbone)
    command.add_argument("--size", type=_count, default=1024, help="input, px a side")


def _list(text: str) -> list[str]:
    return text.split(",")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a number, 1 or more")
    return int(text)


def _some_of(known: list[str]) -> Any:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if not set(chosen) <= set(known):
            raise argparse.ArgumentTypeError(f"must be of {','.join(known)}")
        return chosen

    return parse
