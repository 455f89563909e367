"""Speed and memory, measured; each prints JSON with the machine that it ran on. And the pages made of the results.

examples:
  python -m benchmarks step --method fedmsa --backbone vit_b --size 1024 --batch 1 --steps 1
  python -m benchmarks round --method fedmsa --backbone vit_b --size 1024 --sites 2 --json FILE
  python -m benchmarks data --dataset polyp --raw RAW --site kvasir_seg_vestreviken_no --json FILE
  python -m benchmarks formats --dataset polyp --raw RAW --images 40 --json FILE
  python -m benchmarks compare phantom --set data.protocol=personal --set sites=[a,b] --work DIR --json FILE
  python -m benchmarks pages
  python -m benchmarks phantom --out docs/results/phantom-sites.png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import compare, data, formats, pages, phantom, step
from benchmarks import round as federated_round
from fedfms.files import write_atomic
from fedfms.machine import machine
from fedfms.methods import METHODS
from fedfms.report.overlay import as_png
from fedfms.settings import SiteSettings


def main() -> int:
    """Run the benchmark that the command names; each measurement in a process of its own, for its peak memory."""
    args = _parser().parse_args()
    if args.benchmark == "pages":
        for page in sorted(pages.PAGES.glob("*.md")):
            write_atomic(page, pages.render(page))
        return 0
    if args.benchmark == "phantom":
        write_atomic(args.out, as_png(phantom.picture()))
        return 0
    if args.inner:
        json.dump(_measure(args), sys.stdout)
        return 0
    inner = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--inner"]
    done = subprocess.run(inner, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    text = json.dumps({"machine": machine(), "rows": json.loads(done.stdout)}, indent=2)
    sys.stdout.write(text + "\n")
    if args.json is not None:
        write_atomic(args.json, text + "\n")
    return 0


def _measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.benchmark == "data":
        return data.measure(args.dataset, args.raw, args.site, args.size, args.images)
    if args.benchmark == "compare":
        methods = sorted(METHODS) if args.methods == ["all"] else args.methods
        settings = SiteSettings(data_root=args.data_root, checkpoints=args.checkpoints, cache=args.work / "cache")
        return compare.measure(args.study, methods, args.seeds, args.set, settings, args.work, args.jobs)
    if args.benchmark == "formats":
        return formats.measure(args.dataset, args.raw, args.site, args.size, args.images)
    if args.benchmark == "round":
        return [federated_round.measure(args.method, args.backbone, args.size, args.sites, args.threads)]
    return [step.measure(args.method, args.backbone, args.size, args.batch, args.steps)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
    commands.add_parser("pages", help="make the tables in docs/results again from the JSON beside them")
    picture = commands.add_parser("phantom", help="a picture of the phantom's sites, for the docs")
    picture.add_argument("--out", required=True, type=Path, help="a PNG file")
    step = commands.add_parser("step", help="seconds and peak memory of a training step, random weights")
    step.add_argument("--batch", type=int, default=1)
    step.add_argument("--steps", type=int, default=3)
    round_ = commands.add_parser("round", help="a round in NVFLARE's simulator, one image a site, random weights")
    round_.add_argument("--sites", type=int, default=2)
    round_.add_argument("--threads", type=int, default=1, help="sites at once; each needs a step's memory")
    comparison = commands.add_parser("compare", help="methods on a study: Dice, MB and seconds a round, over seeds")
    comparison.add_argument("study", help="a YAML file, or a name in jobs/studies")
    comparison.add_argument("--methods", type=lambda text: text.split(","), default=["all"], help="a,b (default: all)")
    comparison.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    comparison.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    comparison.add_argument("--data-root", type=Path)
    comparison.add_argument("--checkpoints", type=Path)
    comparison.add_argument("--work", type=Path, required=True, help="a folder that is kept; a cut run goes on there")
    comparison.add_argument("--jobs", type=int, default=1, help="cells at once")
    data = commands.add_parser("data", help="a site's bytes, seconds and images a second, beside the paper's way")
    formats = commands.add_parser("formats", help="bytes and milliseconds of lossless formats on a data set's images")
    for command in (data, formats):
        command.add_argument("--dataset", required=True, help="as `python -m preprocessing --help` names it")
        command.add_argument("--raw", required=True, type=Path)
        command.add_argument("--images", type=int, default=40, help="at most so many are loaded")
    data.add_argument("--site", required=True)
    formats.add_argument("--site", help="default: some images of each")
    for command in (step, round_):
        command.add_argument("--method", default="fedmsa")
        command.add_argument("--backbone", default="vit_b")
    for command in (step, round_, data, formats):
        command.add_argument("--size", type=int, default=1024, help="input, px a side")
    for command in (step, round_, data, formats, comparison):
        command.add_argument("--json", type=Path, metavar="FILE", help="a file to write as well")
        command.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
