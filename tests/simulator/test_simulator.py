"""A federation in NVFLARE's simulator gives the numbers of the in-process loop."""

from pathlib import Path

import pytest

from fedfms.federation.inprocess import final_scores, rounds
from fedfms.flare.job import build_job
from fedfms.settings import SiteSettings
from fedfms.study import Study, load_study

from .common import PHANTOM, assert_equal, assert_simulator_equals_reference, assert_streamed, global_model, records
from .conftest import Simulator

pytestmark = [pytest.mark.federation, pytest.mark.slow]

SITES = ("site-1", "site-2", "site-3")
SMALL = [
    "data.phantom_images=12", "train.rounds=2", "train.local_epochs=1", "held_out=[site-3]", "federation.min_cases=1",
]  # fmt: skip


def _study(method: str) -> Study:
    return load_study(PHANTOM, method=method, overrides=SMALL)


# One of each kind: SAM, another family, pooled data. For the other methods see tests/flare/test_methods.py.
@pytest.mark.parametrize("method", ["fedmsa", "fedunet", "msa"])
def test_the_simulator_equals_the_reference(method: str, simulate: Simulator, tmp_path: Path) -> None:
    assert_simulator_equals_reference(method, simulate, tmp_path)


def test_a_held_out_site_scores_and_does_not_train(simulate: Simulator, tmp_path: Path) -> None:
    study = _study("fedmsa")
    job = build_job(study, tmp_path / "job")
    done = simulate(job, tmp_path / "ws", "-n", "3", "-t", "3")
    assert done.returncode == 0, done.stdout[-3000:]
    *_, last = rounds(study, SITES, SiteSettings(), tmp_path / "reference")
    assert_equal(global_model(tmp_path / "ws"), last.server.shared, 1e-6)
    rows, final = records(tmp_path / "ws")
    trained = [row for row in rows if not row["held_out"]]
    assert [(row["round"], row["site"], row["accepted"]) for row in trained] == [
        (r, site, True) for r in range(2) for site in ("site-1", "site-2")
    ]
    assert [row["site"] for row in rows if row["held_out"]] == ["site-3", "site-3"]
    assert_streamed(tmp_path / "ws", rows)
    # The held-out site scores the final and the best model on all its images.
    for name in ("final", "best"):
        entry = final[name]["sites"]["site-3"]
        assert (entry["part"], entry["images"], entry["held_out"]) == ("all", 12, True)
        assert entry["scores"]["dice"] is not None
    reference = final_scores(study, SITES, SiteSettings(), tmp_path / "reference", last.server)
    for site in SITES:
        assert final["final"]["sites"][site]["scores"]["dice"] == pytest.approx(
            reference[site]["scores"]["dice"], abs=1e-6
        )
    # The update contains the shared tensors, and no byte of the frozen ones.
    payload = sum(tensor.numel() * 4 for tensor in last.server.shared.values())
    assert all(row["bytes_up"] == row["bytes_down"] == payload for row in trained)
    report = tmp_path / "ws" / "server" / "simulate_job" / "fedfms" / "report"
    for name in ("results.json", "curves.png", "table.md", "config.yaml"):
        assert (report / name).stat().st_size > 0
    assert list((tmp_path / "ws" / "site-1").rglob("overlays/final_*.png"))
