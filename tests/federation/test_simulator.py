"""The federation in NVFLARE's simulator against the in-process reference loop: the same numbers, however it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.flare.job import build_job
from fedfms.methods import METHODS, Tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study, load_study
from fedfms.training.reference import final_scores, rounds

from .conftest import Simulator

pytestmark = [pytest.mark.federation, pytest.mark.slow]

PHANTOM = Path(__file__).parents[2] / "jobs" / "studies" / "phantom.yaml"
SITES = ("site-1", "site-2", "site-3")
SMALL = ["data.phantom_images=12", "train.rounds=2", "train.local_epochs=1", "held_out=[site-3]"]


def _study(method: str) -> Study:
    return load_study(PHANTOM, method=method, overrides=SMALL)


def _global_model(workspace: Path) -> Tensors:
    (path,) = workspace.glob("server/simulate_job/app_server/FL_global_model.pt")
    model: Tensors = torch.load(path, weights_only=True)["model"]
    return model


def _records(workspace: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder = workspace / "server" / "simulate_job" / "fedfms"
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "final.json").read_text())["models"]


def _assert_equal(one: Tensors, other: Tensors, tolerance: float) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=0, atol=tolerance), name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_simulator_with_all_threads_equals_the_reference(method: str, simulate: Simulator, tmp_path: Path) -> None:
    study = _study(method)
    job = build_job(study, tmp_path / "job")
    done = simulate(job, tmp_path / "ws", "-n", "3", "-t", "3")
    assert done.returncode == 0, done.stdout[-3000:]
    *_, last = rounds(study, SITES, SiteSettings(), tmp_path / "reference")
    _assert_equal(_global_model(tmp_path / "ws"), last.server.shared, 1e-6)
    rows, final = _records(tmp_path / "ws")
    trained = [row for row in rows if not row["held_out"]]
    assert [(row["round"], row["site"], row["accepted"]) for row in trained] == [
        (r, site, True) for r in range(2) for site in ("site-1", "site-2")
    ]
    assert [row["site"] for row in rows if row["held_out"]] == ["site-3", "site-3"]
    reference = final_scores(study, SITES, SiteSettings(), tmp_path / "reference", last.server)
    for site in SITES:
        assert final["final"]["sites"][site]["scores"]["dice"] == pytest.approx(
            reference[site]["scores"]["dice"], abs=1e-6
        )
    # What goes up is what the method shares, and not a byte of the frozen part.
    payload = sum(tensor.numel() * 4 for tensor in last.server.shared.values())
    assert all(row["bytes_up"] == row["bytes_down"] == payload for row in trained)


def test_one_thread_and_a_new_process_for_every_task_give_the_same(simulate: Simulator, tmp_path: Path) -> None:
    study = _study("fedmsa")
    job = build_job(study, tmp_path / "job")
    done = simulate(job, tmp_path / "ws", "-n", "2", "-t", "1")
    assert done.returncode == 0, done.stdout[-3000:]
    *_, last = rounds(study, SITES[:2], SiteSettings(), tmp_path / "reference")
    _assert_equal(_global_model(tmp_path / "ws"), last.server.shared, 1e-6)
    report = tmp_path / "ws" / "server" / "simulate_job" / "fedfms" / "report"
    for name in ("results.json", "curves.png", "table.md", "config.yaml"):
        assert (report / name).stat().st_size > 0
    assert list((tmp_path / "ws" / "site-1").rglob("overlays/final_*.png"))
