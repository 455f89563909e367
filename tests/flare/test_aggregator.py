"""The aggregator on real shareables: it rejects every invalid update, whatever arrived before."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector

from fedfms.federation.state import ServerStateStore
from fedfms.flare.messages import REPORT
from fedfms.flare.persistor import SharedModel
from fedfms.flare.selector import AcceptedModelSelector
from fedfms.methods import ServerState, Update, make_method

from .make import MODEL, ROUND, Server, update


def test_the_mean_is_weighted_by_sample_counts() -> None:
    server = Server()
    assert server.send("b", update(1.0, samples=30))
    assert server.send("a", update(5.0, samples=10))
    assert np.array_equal(server.aggregate()["decoder.w"], np.full((2, 2), 2.0, np.float32))


def test_the_server_state_is_stored_after_each_round() -> None:
    server = Server()
    server.send("a", update(1.0))
    server.send("b", update(3.0))
    server.aggregate()
    stored = ServerStateStore(Path(server.run.name) / "fedfms" / "server.pt").load()
    assert stored is not None
    assert stored.round == 4
    assert torch.equal(stored.shared["decoder.w"], torch.full((2, 2), 2.0))


def test_the_order_of_arrival_changes_no_bit() -> None:
    stream = np.random.default_rng(0)
    sent = {
        site: {name: stream.standard_normal(tuple(tensor.shape), dtype=np.float32) for name, tensor in MODEL.items()}
        for site in ("a", "b", "c", "d", "e")
    }
    results = []
    for order in ("abcde", "edcba", "cdaeb"):
        server = Server()
        for site in order:
            assert server.send(site, update(samples=10 + ord(site), **sent[site]))
        results.append({name: array.tobytes() for name, array in server.aggregate().items()})
    assert results[0] == results[1] == results[2]


def test_updates_are_dropped_when_a_run_starts_or_ends_and_their_folder_is_removed() -> None:
    server = Server()
    folder = Path(server.run.name) / "fedfms" / "updates"
    for event in (EventType.START_RUN, EventType.END_RUN):
        server.send("a", update())
        (folder / "of a killed run").write_bytes(b"tensors")
        server.aggregator.handle_event(event, server.context)
        assert not folder.exists()
    assert server.send("a", update())


def test_a_server_without_disk_space_rejects_an_update_with_the_reason() -> None:
    server = Server()
    (Path(server.run.name) / "fedfms").write_text("a file in the place of the folder")
    assert not server.send("a", update())
    assert server.aggregator.rows["a"]["reason"].startswith("the server cannot store it")


def test_a_server_without_disk_space_for_the_mirrors_ends_the_job() -> None:
    server = Server(compression="int8")
    (Path(server.run.name) / "fedfms").write_text("a file in the place of the folder")
    for site in ("a", "b"):
        assert server.aggregator.dispatch(site, 3, "", server.context) is None
    assert len(server.panics) == 1
    assert "round 3: what sites hold: the server cannot store it" in server.panics[0]
    assert not server.send("b", update())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux reports a process's anonymous memory")
@pytest.mark.parametrize(("codec", "sites"), [("none", 32), ("bfloat16", 16), ("int8", 16)])
def test_memory_does_not_grow_with_the_sites(codec: str, sites: int) -> None:
    """Three rounds of a model of 4 M parameters, without the copy that NVFLARE holds."""
    env = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # freed memory returns to the system, so that only used memory counts
    command = [sys.executable, "-m", "tests.flare.memory", str(sites), "4000000", codec]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["samples"] > 100, measured
    assert 0.5 < measured["copies"] <= 3, measured


INVALID = {
    "nan": lambda: update(float("nan")),
    "inf": lambda: update(float("inf")),
    "broadcastable shape": lambda: update(**{"decoder.w": np.zeros((1, 2), np.float32)}),
    "missing name": lambda: _without(update(), "decoder.w"),
    "extra name": lambda: update(**{"encoder.secret": np.zeros(2, np.float32)}),
    "float64": lambda: update(**{"decoder.w": np.zeros((2, 2))}),
    "no samples": lambda: update(samples=0),
    "negative samples": lambda: update(samples=-5),
    "NaN samples": lambda: update(samples=float("nan")),
    "samples that dominate the mean": lambda: update(samples=10**15),
    "samples beyond float": lambda: update(samples=10**400),
    "a score above 1": lambda: update(val_dice=1e9),
    "older round": lambda: update(round_=2),
    "rounds": lambda: update(round_=np.array([3, 3])),
    "differences": lambda: DXO(DataKind.WEIGHT_DIFF, {"decoder.w": np.zeros((2, 2), np.float32)}).to_shareable(),
    "metrics": lambda: DXO(DataKind.METRICS, {REPORT: {}}).to_shareable(),
    "no exchange object": Shareable,
}


def _without(shareable: Shareable, name: str) -> Shareable:
    dxo = from_shareable(shareable)
    del dxo.data[name]
    rebuilt: Shareable = dxo.to_shareable()
    return rebuilt


@pytest.mark.parametrize("first", [True, False], ids=["invalid first", "invalid last"])
@pytest.mark.parametrize("kind", sorted(INVALID))
def test_an_invalid_update_is_rejected_and_the_valid_ones_are_accepted(kind: str, first: bool) -> None:
    server = Server()
    order = ["bad", "a", "b"] if first else ["a", "b", "bad"]
    answers = {site: server.send(site, INVALID[kind]() if site == "bad" else update(2.0)) for site in order}
    assert answers == {"a": True, "b": True, "bad": False}
    assert server.aggregator.rows["bad"]["reason"]
    assert np.array_equal(server.aggregate()["decoder.w"], np.full((2, 2), 2.0, np.float32))
    assert not server.panics


def test_an_old_cookie_is_rejected() -> None:
    assert not Server().send("a", update(), round_=2)


def test_a_second_update_of_a_site_is_rejected_and_the_first_one_counts() -> None:
    server = Server()
    assert server.send("a", update(1.0))
    assert not server.send("a", update(9.0))
    assert server.aggregator.rows["a"]["accepted"]
    assert server.send("b", update(1.0))
    assert server.aggregate()["decoder.w"].max() == 1.0


def test_a_held_out_site_is_recorded_and_never_aggregated() -> None:
    server = Server(min_sites=1)
    assert not server.send("unseen", update(100.0))
    assert server.send("a", update(1.0))
    assert server.aggregator.rows["unseen"]["held_out"]
    assert server.aggregate()["decoder.w"].max() == 1.0


def test_a_round_with_too_few_updates_fails_with_the_reason_of_each_site() -> None:
    server = Server()
    server.send("a", update())
    server.send("b", update(float("nan")))
    server.aggregator.aggregate(server.context)
    assert len(server.panics) == 1
    assert "1 updates accepted, 2 needed" in server.panics[0]
    assert "b: " in server.panics[0]
    assert "not finite" in server.panics[0]


def test_a_round_fails_with_the_errors_of_its_sites() -> None:
    server = Server()
    server.send("unseen", update())
    server.send("a", update())
    server.fail("b", "there is no image")
    server.aggregator.aggregate(server.context)
    assert server.panics == [
        "fedfms: round 3: 1 updates accepted, 2 needed (site b: there is no image)"
    ]  # fmt: skip


def test_an_error_never_hides_an_accepted_update() -> None:
    server = Server(min_sites=1)
    server.fail("a", "of the round before", round_=2)
    assert "a" not in server.aggregator.rows
    server.send("a", update())
    server.fail("a", "a second answer")
    assert server.aggregator.rows["a"]["accepted"]


def test_an_update_after_the_round_was_closed_is_late_and_has_no_row() -> None:
    server = Server(min_sites=1)
    server.send("a", update())
    server.aggregate()
    assert not server.send("b", update())
    assert "b" not in server.aggregator.rows
    server.aggregator.reset(server.context)
    assert not server.send("b", update())  # NVFLARE resets the aggregator before it counts its round up
    assert "b" not in server.aggregator.rows
    server.set_round(4)
    assert server.send("b", update(round_=4), round_=4)


def test_what_arrives_while_the_round_is_aggregated_changes_nothing_and_does_not_wait() -> None:
    """NVFLARE answers sites from other threads during the aggregation."""
    method = make_method("fedmsa", {})
    server, real, seen = Server(min_sites=1, method=method), method.aggregate, []

    def other_thread() -> None:
        seen.append(server.send("b", update(9.0)))
        server.fail("c", "an error")
        seen.append(server.aggregator.dispatch("a", ROUND, "", server.context) is not None)

    def aggregate(updates: Sequence[Update], state: ServerState) -> ServerState:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(other_thread).result(timeout=30)
        return real(updates, state)

    method.aggregate = aggregate  # type: ignore[method-assign]
    assert server.send("a", update(1.0))
    assert server.aggregate()["decoder.w"].max() == 1.0
    assert seen == [False, True]
    assert set(server.aggregator.rows) == {"a"}
    server.fail("c", "an error")  # before NVFLARE resets the aggregator
    assert server.aggregator.dispatch("a", ROUND, "", server.context) is None
    assert set(server.aggregator.rows) == {"a"}


def test_the_rows_of_an_unfinished_round_remain_for_the_recorder_when_the_run_ends() -> None:
    server = Server()
    server.context.get_job_id = lambda: "job"
    server.send("a", update(samples=0))
    server.fail("b", "the cause")
    server.aggregator.handle_event(EventType.END_RUN, server.context)
    assert "number of samples" in server.aggregator.rows["a"]["reason"]
    assert "the cause" in server.aggregator.rows["b"]["reason"]


@pytest.mark.parametrize("scores", [{b"x": 1}, {("a",): 1}, "x" * 10**6, {1, 2}], ids=["bytes", "tuple", "long", "set"])
@pytest.mark.parametrize("value", [1.0, float("nan")], ids=["accepted", "rejected"])
def test_no_report_of_a_site_makes_the_round_fail(scores: Any, value: float) -> None:
    server = Server()
    server.send("b", update())
    server.send("c", update())
    dxo = from_shareable(update(value))
    dxo.set_meta_prop(REPORT, {"scores": scores, "seconds": 1.0})
    server.send("a", dxo.to_shareable())
    assert server.aggregate() and not server.panics
    row = server.aggregator.rows["a"]
    assert (row["accepted"], row["seconds"]) == (value == 1.0, 1.0)
    assert row["scores"] in ("not plain data", "too much data")


def test_only_accepted_updates_select_the_best_model() -> None:
    """The reason for our selector: NVFLARE's own counts the score of an update that is then rejected."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for name, selector in (("ours", AcceptedModelSelector("val_dice")), ("theirs", IntimeModelSelector())):
        server = Server()
        selector.key_metric = "val_dice"
        selector.fire_event = lambda _, context, name=name: found[name].append(
            context.get_prop(AppConstants.VALIDATION_RESULT)
        )
        for site, value, dice in (("a", 1.0, 0.5), ("b", 1.0, 0.7), ("bad", float("nan"), 1.0)):
            shareable = update(value, val_dice=dice)
            peer = FLContext()
            peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
            peer.put(FLContextKey.SHAREABLE, shareable, private=False, sticky=False)
            server.context.set_peer_context(peer)
            shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 3)
            selector.handle_event(AppEventType.BEFORE_CONTRIBUTION_ACCEPT, server.context)
            server.context.set_prop(AppConstants.AGGREGATION_ACCEPTED, server.send(site, shareable))
            selector.handle_event(AppEventType.AFTER_CONTRIBUTION_ACCEPT, server.context)
        selector.handle_event(AppEventType.BEFORE_AGGREGATION, server.context)
    assert found["ours"] == [pytest.approx(0.6)]
    assert found["theirs"] == [pytest.approx(2.2 / 3)]


def test_the_next_round_starts_without_updates() -> None:
    server = Server()
    server.send("a", update())
    server.aggregator.reset(server.context)
    assert server.send("a", update())


def test_nvflares_own_aggregator_accepts_invalid_updates() -> None:
    """The reason for our aggregator. Once NVFLARE fixes this, the test fails, and our own may be reconsidered."""
    from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import (
        InTimeAccumulateWeightedAggregator,
    )

    theirs = InTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHTS)
    context = Server().context
    theirs._initialize(None, None, DataKind.WEIGHTS)
    for site, shareable in {"a": update(float("nan")), "b": update(1.0, samples=-5)}.items():
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: site})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 3)
        assert theirs.accept(shareable, context)


def test_the_servers_module_has_the_shared_tensors_only() -> None:
    module = SharedModel({name: torch.rand(tensor.shape) for name, tensor in MODEL.items()})
    assert set(module.state_dict()) == set(MODEL)


def test_the_sample_count_is_sent_under_nvflares_key() -> None:
    assert from_shareable(update(samples=12)).get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 12
