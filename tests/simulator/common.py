"""Compares a method in NVFLARE's simulator with the in-process loop, and checks its records and live curves."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.round import add_clock, by_part
from fedfms.federation.inprocess import final_scores, rounds
from fedfms.federation.state import ServerStateStore
from fedfms.flare.job import build_job
from fedfms.flare.messages import TRAIN, VALIDATE
from fedfms.flare.tracking import EVENTS
from fedfms.methods import METHODS, Tensors, training_sites
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, load_study
from fedfms.training.build import build
from fedfms.training.state import StateStore

from .conftest import Simulator
from .spy import FILE

ROOT = Path(__file__).parents[2]
PHANTOM = STUDIES / "phantom.yaml"
NEW_PROCESSES = ("feddbe",)  # two optimizers, stored tensors, private tensors
DIGEST = re.compile(r"[0-9a-f]{32}")
SCHEMA = re.compile(r"empty|[0-9a-f]+(-[0-9a-f]+){2}")
DTYPES = {"none": None, "bfloat16": "uint16", "float16": "float16", "int8": "uint8"}
TINY = [
    "data.phantom_images=7", "data.phantom_px=64", "model.input_px=64", "train.rounds=2", "train.local_epochs=1",
    "sites=[a, b]", "held_out=[]", "federation.min_cases=1",
]  # fmt: skip


def global_model(workspace: Path) -> Tensors:
    """The global model that the run saved at the server."""
    (path,) = workspace.glob("server/simulate_job/app_server/FL_global_model.pt")
    model: Tensors = torch.load(path, weights_only=True)["model"]
    return model


def records(workspace: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The server's records of the run: rows of rounds, and models."""
    folder = workspace / "server" / "simulate_job" / "fedfms"
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "final.json").read_text())["models"]


def assert_equal(one: Tensors, other: Tensors, tolerance: float) -> None:
    """Check for equal names, and values within `tolerance`."""
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=0, atol=tolerance), name


def assert_streamed(workspace: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that TensorBoard's files contain the numbers of rounds.jsonl, each once, and no text, picture or case."""
    folder = workspace / "server" / "simulate_job" / EVENTS
    assert sorted(path.name for path in folder.iterdir()) == sorted({row["site"] for row in rows})
    for place in folder.iterdir():
        events = EventAccumulator(str(place))
        events.Reload()
        kinds = {kind: tags for kind, tags in events.Tags().items() if tags}
        assert list(kinds) == ["scalars"]
        streamed = {(tag, event.step): event.value for tag in kinds["scalars"] for event in events.Scalars(tag)}
        assert len(streamed) == sum(len(events.Scalars(tag)) for tag in kinds["scalars"])
        expected = {
            (tag, row["round"]): value
            for row in rows if row["site"] == place.name
            for tag, value in _expected(row).items()
        }  # fmt: skip
        assert streamed == pytest.approx(expected, rel=1e-6)
        raw = b"".join(path.read_bytes() for path in place.iterdir())
        assert not any(word in raw for word in (b"phantom", b"case", b"/home", b"/tmp"))


def _expected(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of rounds.jsonl by TensorBoard's tags."""
    values = {"bytes/down": row["bytes_down"]}
    if not row["held_out"]:
        values |= {"train/loss": row["train_loss"], "bytes/up": row["bytes_up"], "seconds/round": row["seconds"]}
    part = "held-out" if row["held_out"] else "validation"
    values[f"{part}/dice"] = row["scores"]["dice"]
    for structure in ("disc", "cup"):
        for metric in ("dice", "iou"):
            values[f"{part}/{metric}/{structure}"] = row["scores"]["standard"][structure][metric]
            values[f"{part}/{metric}_fedfms/{structure}"] = row["scores"]["fedfms"][structure][metric]
    return {tag: value for tag, value in values.items() if value is not None}


def _numbers(tensor: torch.Tensor) -> Any:
    return [str(tensor.dtype), *(round(value, 5) for value in tensor.double().flatten().tolist())]


def _spied(job: Path) -> Path:
    """Add a filter to the job's sites that records what leaves them."""
    path = job / "app" / "config" / "config_fed_client.json"
    config = json.loads(path.read_text())
    config["task_result_filters"] = [
        {"tasks": [TRAIN, VALIDATE], "filters": [{"path": "tests.simulator.spy.Spy", "args": {}}]}
    ]
    path.write_text(json.dumps(config))
    add_clock(job)
    return job


def _assert_timed(workspace: Path, sites: Sequence[str]) -> None:
    """Check the seconds of each part of a round; a site waits for the rest of the round."""
    rows = by_part(workspace, sites)
    assert len(rows) == 2
    for row in rows:
        whole, wait = row.pop("round_s"), row.pop("wait_s")
        assert all(seconds >= 0 for seconds in row.values())
        assert 0 < row["train_s"] < whole
        assert 0 <= wait < whole


def assert_simulator_equals_reference(
    method: str, simulate: Simulator, tmp_path: Path, compression: str = "none"
) -> None:
    """Check the server's model, mixtures, private tensors, scores, what left the sites, and the live curves."""
    study = load_study(PHANTOM, method=method, overrides=[*TINY, f"federation.compression={compression}"])
    sites = training_sites(study)
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}
    # With one thread every task is a new process, and a site knows only what it has stored.
    threads = "1" if method in NEW_PROCESSES and compression == "none" else str(len(sites))
    done = simulate(_spied(build_job(study, tmp_path / "job")), tmp_path / "ws", "-t", threads, env=path)
    assert done.returncode == 0, done.stdout[-3000:]
    *_, last = rounds(study, study.sites, SiteSettings(), tmp_path / "reference")
    run = tmp_path / "ws" / "server" / "simulate_job" / "fedfms"
    server = ServerStateStore(run / "server.pt").load()
    assert server is not None
    assert server.round == study.train.rounds
    assert_equal(server.shared, last.server.shared, 1e-6)
    if server.shared:
        assert_equal(global_model(tmp_path / "ws"), last.server.shared, 1e-6)
    assert set(server.per_site) == set(last.server.per_site)
    assert json.dumps(server.state, default=_numbers) == json.dumps(last.server.state, default=_numbers)
    for site, mixture in server.per_site.items():
        assert_equal(mixture, last.server.per_site[site], 1e-6)
    assert (run / "mixing.jsonl").is_file() is ("W" in server.notes)

    rows, final = records(tmp_path / "ws")
    trained = [(row["round"], row["site"], row["accepted"]) for row in rows]
    assert trained == [(r, site, True) for r in range(2) for site in sites]
    sent = plan_traffic(study)
    for way, mb in (("bytes_up", sent.up_mb), ("bytes_down", sent.down_mb)):
        assert sum(row[way] for row in rows) == pytest.approx(mb * 1e6 * len(rows))
    assert_streamed(tmp_path / "ws", rows)
    _assert_timed(tmp_path / "ws", sites)
    reference = final_scores(study, study.sites, SiteSettings(), tmp_path / "reference", last.server)
    for site in study.sites:
        dice = final["final"]["sites"][site]["scores"]["dice"]
        assert dice == pytest.approx(reference[site]["scores"]["dice"], abs=1e-6)

    partition = build(study, SiteSettings()).partition
    for site in sites:
        folder = tmp_path / "ws" / site / "simulate_job"
        left = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
        assert [line["task"] for line in left[:2]] == [TRAIN, TRAIN]
        assert {line["task"] for line in left[2:]} == {VALIDATE}  # the final model, and the best where there is one
        assert all(set(line["tensors"]) <= set(partition.shared) for line in left)
        assert not any(line["tensors"] for line in left if line["task"] == VALIDATE)
        assert not any(line["other arrays"] for line in left)
        texts = {text for line in left for text in line["other texts"]}
        plain = {text for text in texts if not DIGEST.fullmatch(text) and not SCHEMA.fullmatch(text)}
        assert plain <= {"val", "test", "all", site, "simulate_job"}  # and the message header: site, job, schema
        # A compressed update contains the digest of the model that it changes, one per round.
        assert len([text for text in texts if DIGEST.fullmatch(text)]) == (0 if compression == "none" else 2)
        assert DTYPES[compression] in {None, *left[0]["dtypes"]}
        assert [line["bytes"] for line in left[:2]] == [row["bytes_up"] for row in rows if row["site"] == site]
        stored = [StateStore(place / "state").load() for place in (folder / "fedfms", tmp_path / "reference" / site)]
        assert all(state is not None for state in stored)
        one, other = ({n: state.trained[n] for n in partition.private} | state.stored for state in stored if state)
        assert_equal(one, other, 1e-6)
        one, other = (state.held for state in stored if state)
        assert_equal(one, other, 1e-6)
        personal = folder / "fedfms" / "models" / "personal_final.pt"
        assert personal.is_file() is METHODS[method].personal
