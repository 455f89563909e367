"""The federation in NVFLARE's simulator against the in-process reference loop: the same numbers, however it is run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.flare.job import build_job
from fedfms.flare.wire import TRAIN, VALIDATE
from fedfms.methods import METHODS, Tensors, trainers
from fedfms.settings import SiteSettings
from fedfms.study import Study, load_study
from fedfms.training.build import build
from fedfms.training.reference import final_scores, rounds
from fedfms.training.server import ServerStore
from fedfms.training.state import StateStore

from .conftest import Simulator
from .spy import FILE

pytestmark = [pytest.mark.federation, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PHANTOM = ROOT / "jobs" / "studies" / "phantom.yaml"
SITES = ("site-1", "site-2", "site-3")
ANEW = ("fedala", "feddbe", "fedsca")  # what is kept at a site: learnt memory, two optimizers, private tensors
TINY = [
    "data.phantom_images=7", "data.phantom_px=64", "model.input_px=64", "train.rounds=2", "train.local_epochs=1",
    "sites=[a, b]", "held_out=[]", "federation.min_cases=1",
]  # fmt: skip
SMALL = [
    "data.phantom_images=12", "train.rounds=2", "train.local_epochs=1", "held_out=[site-3]", "federation.min_cases=1",
]  # fmt: skip


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


def _numbers(tensor: torch.Tensor) -> Any:
    return [str(tensor.dtype), *(round(value, 5) for value in tensor.double().flatten().tolist())]


def _spied(job: Path) -> Path:
    """The job with a filter at the sites that writes down what leaves them."""
    path = job / "app" / "config" / "config_fed_client.json"
    config = json.loads(path.read_text())
    config["task_result_filters"] = [
        {"tasks": [TRAIN, VALIDATE], "filters": [{"path": "tests.federation.spy.Spy", "args": {}}]}
    ]
    path.write_text(json.dumps(config))
    return job


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_simulator_equals_the_reference(method: str, simulate: Simulator, tmp_path: Path) -> None:
    """Every registered method: server's model, mixtures, private tensors, scores, and what left the sites."""
    study = load_study(PHANTOM, method=method, overrides=TINY)
    sites = trainers(study)
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}
    # With one thread every task has a process of its own, and what a site knows is what it wrote.
    threads = "1" if method in ANEW else str(len(sites))
    done = simulate(_spied(build_job(study, tmp_path / "job")), tmp_path / "ws", "-t", threads, env=path)
    assert done.returncode == 0, done.stdout[-3000:]
    *_, last = rounds(study, study.sites, SiteSettings(), tmp_path / "reference")
    run = tmp_path / "ws" / "server" / "simulate_job" / "fedfms"
    server = ServerStore(run / "server.pt").load()
    assert server is not None
    assert server.round == study.train.rounds
    _assert_equal(server.shared, last.server.shared, 1e-6)
    if server.shared:
        _assert_equal(_global_model(tmp_path / "ws"), last.server.shared, 1e-6)
    assert set(server.per_site) == set(last.server.per_site)
    assert json.dumps(server.state, default=_numbers) == json.dumps(last.server.state, default=_numbers)
    for site, mixture in server.per_site.items():
        _assert_equal(mixture, last.server.per_site[site], 1e-6)
    assert (run / "mixing.jsonl").is_file() is ("W" in server.notes)

    rows, final = _records(tmp_path / "ws")
    trained = [(row["round"], row["site"], row["accepted"]) for row in rows]
    assert trained == [(r, site, True) for r in range(2) for site in sites]
    reference = final_scores(study, study.sites, SiteSettings(), tmp_path / "reference", last.server)
    for site in study.sites:
        told = final["final"]["sites"][site]["scores"]["dice"]
        assert told == pytest.approx(reference[site]["scores"]["dice"], abs=1e-6)

    partition = build(study, SiteSettings()).partition
    for site in sites:
        folder = tmp_path / "ws" / site / "simulate_job"
        left = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
        assert [line["task"] for line in left[:2]] == [TRAIN, TRAIN]
        assert {line["task"] for line in left[2:]} == {VALIDATE}  # the final model, and the best where there is one
        assert all(set(line["tensors"]) <= set(partition.shared) for line in left)
        assert not any(line["tensors"] for line in left if line["task"] == VALIDATE)
        assert not any(line["arrays beside"] for line in left)
        assert {text for line in left for text in line["texts beside"]} <= {"val", "test", "all"}
        assert [line["bytes"] for line in left[:2]] == [row["bytes_up"] for row in rows if row["site"] == site]
        stored = [StateStore(place / "state").load() for place in (folder / "fedfms", tmp_path / "reference" / site)]
        assert all(state is not None for state in stored)
        one, other = ({n: state.trained[n] for n in partition.private} | state.memory for state in stored if state)
        _assert_equal(one, other, 1e-6)
        personal = folder / "fedfms" / "models" / "personal_final.pt"
        assert personal.is_file() is METHODS[method].personal


def test_a_held_out_site_scores_and_does_not_train(simulate: Simulator, tmp_path: Path) -> None:
    study = _study("fedmsa")
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
