"""Speed and memory, measured; each prints JSON with the machine that it ran on. And the pages made of the results.

examples:
  python -m benchmarks step --method fedmsa --backbone vit_b --size 1024 --batch 1 --steps 3 --json FILE
  python -m benchmarks step --method fedmsa,fedsam --backbone vit_b,vit_l --batch 6 --steps 5 --json FILE
  python -m benchmarks step --paths plain,fast --dtypes float32 --steps 1 --repeats 3
  python -m benchmarks predict --backbone vit_b --size 1024 --steps 3 --repeats 3
  python -m benchmarks epoch --backbone tiny_vit --size 1024 --batch 4
  python -m benchmarks memory --backbone vit_b --size 1024 --batch 6
  python -m benchmarks loader --size 1024 --images 40
  python -m benchmarks wire --method fedmsa
  python -m benchmarks aggregate --sites 64
  python -m benchmarks round --method fedmsa --backbone vit_b --size 1024 --sites 2 --json FILE
  python -m benchmarks compare phantom --set data.protocol=personal --set sites=[a,b] --work DIR --json FILE
  python -m benchmarks attack --json FILE
  python -m benchmarks pages
  python -m benchmarks phantom --out docs/results/phantom-sites.png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from benchmarks import aggregate, attack, compare, loader, memory, pages, phantom, step, wire
from benchmarks import round as federated_round
from benchmarks.parser import make_parser
from fedfms.data.overlay import as_png
from fedfms.errors import FedfmsError
from fedfms.files import write_atomic
from fedfms.machine import machine
from fedfms.methods import METHODS
from fedfms.settings import SiteSettings

Rows = list[dict[str, Any]]


def main() -> int:
    """Run the benchmark that the command names; each measurement in a process of its own, for its peak memory."""
    args = make_parser(__doc__ or "").parse_args()
    if args.benchmark == "pages":
        for page in sorted(pages.PAGES.glob("*.md")):
            write_atomic(page, pages.render(page))
        return 0
    if args.benchmark == "phantom":
        write_atomic(args.out, as_png(phantom.picture()))
        return 0
    if args.inner:
        try:
            json.dump(_MEASURE[args.benchmark](args), sys.stdout)
        except FedfmsError as error:
            sys.stderr.write(f"benchmarks: {error.line()}\n")
            return 1
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


def _compare(args: argparse.Namespace) -> Rows:
    methods = sorted(METHODS) if args.methods == ["all"] else args.methods
    settings = SiteSettings(data_root=args.data_root, checkpoints=args.checkpoints, cache=args.work / "cache")
    return compare.measure(args.study, methods, args.seeds, args.set, settings, args.work, args.jobs)


def _attack(args: argparse.Namespace) -> Rows:
    return attack.measure(args.rules, args.set)


def _round(args: argparse.Namespace) -> Rows:
    return federated_round.measure(args.method, args.backbone, args.size, args.sites, args.rounds, args.threads)


def _paths(args: argparse.Namespace) -> Rows:
    """A step, or a prediction."""
    cases = [step.Case(path, dtype) for path, dtype in product(args.paths, args.dtypes)]
    how = {"steps": args.steps, "repeats": args.repeats, "training": args.benchmark == "step", "device": args.device}
    size, batch = args.size, getattr(args, "batch", 1)
    studies = [step.study_of(method, backbone, size, batch) for method, backbone in product(args.method, args.backbone)]
    for study in studies:
        step.trained_parameters(study)  # before the first is measured: a name that nothing bears costs no hour
    return [row for study in studies for row in step.measure(study, cases, **how)]


def _epoch(args: argparse.Namespace) -> Rows:
    study = step.study_of(args.method, args.backbone, args.size, args.batch)
    cases = [step.Case(path, "float32", prefix) for path, prefix in product(("plain", "fast"), (False, True))]
    return step.measure(study, cases, steps=args.steps, repeats=args.repeats, device=args.device)


def _memory(args: argparse.Namespace) -> Rows:
    return memory.measure(args.method, args.backbone, args.size, args.batch, args.paths)


def _loader(args: argparse.Namespace) -> Rows:
    return loader.measure(args.size, args.images, args.batch, args.workers)


def _wire(args: argparse.Namespace) -> Rows:
    return wire.measure(args.method, args.backbone, args.repeats)


def _aggregate(args: argparse.Namespace) -> Rows:
    return aggregate.measure(args.method, args.backbone, args.sites, args.repeats)


_MEASURE: Mapping[str, Callable[[argparse.Namespace], Rows]] = {
    "step": _paths, "predict": _paths, "epoch": _epoch, "memory": _memory, "loader": _loader,
    "wire": _wire, "aggregate": _aggregate, "round": _round,
    "compare": _compare, "attack": _attack,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
