"""The notebooks run from top to bottom, and are committed without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def _code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs(path: Path) -> None:
    assert [cell for cell in _code(path) if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow
def test_the_phantom_notebook_runs(tmp_path: Path) -> None:
    (path,) = [path for path in NOTEBOOKS if path.stem == "phantom"]
    script = "\n".join("".join(cell["source"]) for cell in _code(path))
    checks = """
assert min(result.dice().values()) > 0.5, result.dice()
assert len(pictures) == 2
assert set(outcomes[0].pixels) == {"disc", "cup"} and outcomes[0].pixels["disc"] > 100
assert (work / "masks" / "example_mask.png").is_file()
"""
    done = subprocess.run(
        [sys.executable, "-c", script + checks], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [f"round {n}" for n in range(1, 6)]
