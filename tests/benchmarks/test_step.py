"""A benchmark runs as a command and reports its machine; no timing is asserted."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

PATHS = ("plain", "fast")


@pytest.mark.slow
def test_the_rows_of_a_step_as_json(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    command = "step --method fedmsa,fedsam --backbone vit_tiny --size 64 --paths plain,fast --dtypes float32 --steps 1"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command.split(), "--json", str(out)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(out.read_text())
    report = json.loads(done.stdout)
    plain, fast = report["rows"][:2]
    assert [(row["method"], row["path"]) for row in report["rows"]] == list(product(["fedmsa", "fedsam"], PATHS))
    assert (plain["times_faster"], plain["peak_share"]) == (1, 1)
    assert all(row["step_s"] > 0 and row["predict_s"] > 0 for row in report["rows"])
    assert all(row["peak_mb"] > row["base_mb"] > 0 for row in report["rows"])
    assert report["machine"]["cores"] >= 1
