"""Benchmarks of speed, memory, bytes and robustness. Each prints JSON with the machine on which it ran.

examples:
  python -m benchmarks step --method fedmsa,fedsam --backbone vit_b,vit_l --batch 6 --steps 5 --json FILE
  python -m benchmarks compression --method fedmsa
  python -m benchmarks aggregate --sites 64
  python -m benchmarks round --method fedmsa --backbone vit_b --sites 2 --json FILE
  python -m benchmarks pages
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from benchmarks import aggregate, attack, compression, loader, memory, pages, phantom, step
from benchmarks import round as federated_round
from benchmarks.parser import make_parser
from fedfms.data.overlay import as_png
from fedfms.errors import FedfmsError
from fedfms.files import json_text, write_atomic
from fedfms.machine import machine

Rows = list[dict[str, Any]]


def main() -> int:
    """Run a benchmark in a process of its own, so that its peak memory can be measured."""
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
    text = json_text({"machine": machine(), "rows": json.loads(done.stdout)})
    sys.stdout.write(text)
    if args.json is not None:
        write_atomic(args.json, text)
    return 0


def _steps(args: argparse.Namespace) -> Rows:
    """Training steps, or predictions."""
    training = args.benchmark == "step"
    cases = [step.Case(path, dtype) for path, dtype in product(args.paths, args.dtypes)]
    batch = args.batch if training else 1
    studies = [step.make_study(*pair, args.size, batch) for pair in product(args.method, args.backbone)]
    for study in studies:
        step.trained_parameters(study)  # detects an unknown name before the first measurement
    how = {"steps": args.steps, "repeats": args.repeats, "training": training, "device": args.device}
    return [row for study in studies for row in step.measure(study, cases, **how)]


def _epoch(args: argparse.Namespace) -> Rows:
    study = step.make_study(args.method, args.backbone, args.size, args.batch)
    options = (args.paths, args.dtypes, (False, True), args.adapter_blocks)
    cases = [step.Case(*case) for case in product(*options)]
    return step.measure(study, cases, steps=args.steps, repeats=args.repeats, device=args.device)


_MEASURE: Mapping[str, Callable[[argparse.Namespace], Rows]] = {
    "step": _steps,
    "predict": _steps,
    "epoch": _epoch,
    "memory": lambda a: memory.measure(a.method, a.backbone, a.size, a.batch, a.paths),
    "loader": lambda a: loader.measure(a.size, a.images, a.batch, a.workers),
    "compression": lambda a: compression.measure(a.method, a.backbone, a.repeats),
    "aggregate": lambda a: aggregate.measure(a.method, a.backbone, a.sites, a.repeats),
    "round": lambda a: federated_round.measure(a.method, a.backbone, a.size, a.sites, a.rounds, a.threads),
    "attack": lambda a: attack.measure(a.rules, a.set),
}


if __name__ == "__main__":
    sys.exit(main())
