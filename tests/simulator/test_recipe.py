"""An NVFLARE recipe runs in NVFLARE's simulation environment."""

from pathlib import Path

import pytest
from nvflare.recipe import SimEnv

import fedfms

from .common import records

pytestmark = [pytest.mark.federation, pytest.mark.slow]


def test_a_recipe_runs_in_the_simulator(tmp_path: Path) -> None:
    overrides = {"data.phantom_images": 8, "data.phantom_px": 64, "model.input_px": 64}
    made = fedfms.recipe("fedmsa", study="phantom", rounds=1, overrides=overrides)
    run = made.execute(SimEnv(num_clients=2, workspace_root=str(tmp_path)))
    assert run is not None
    assert run.get_result() == str(tmp_path / "phantom-fedmsa")
    rows, final = records(tmp_path / "phantom-fedmsa")
    assert [(row["round"], row["site"], row["accepted"]) for row in rows] == [(0, "site-1", True), (0, "site-2", True)]
    assert set(final["final"]["sites"]) == {"site-1", "site-2"}
