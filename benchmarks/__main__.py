"""python -m benchmarks step --method fedmsa --backbone vit_b --size 1024 --batch 1 --steps 1"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.step import measure
from fedfms.files import write_atomic


def main() -> int:
    """Run the benchmark that the command names; each measurement in a process of its own, for its peak memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
    step = commands.add_parser("step", help="seconds and peak memory of a training step, random weights")
    step.add_argument("--method", default="fedmsa")
    step.add_argument("--backbone", default="vit_b")
    step.add_argument("--size", type=int, default=1024, help="input, px a side")
    step.add_argument("--batch", type=int, default=1)
    step.add_argument("--steps", type=int, default=3)
    step.add_argument("--json", type=Path, nargs="?", const=Path("-"), help="a file to write as well")
    step.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner:
        json.dump(measure(args.method, args.backbone, args.size, args.batch, args.steps), sys.stdout)
        return 0
    inner = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--inner"]
    done = subprocess.run(inner, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    text = json.dumps({"machine": machine(), "rows": [json.loads(done.stdout)]}, indent=2)
    sys.stdout.write(text + "\n")
    if args.json is not None and args.json != Path("-"):
        write_atomic(args.json, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
