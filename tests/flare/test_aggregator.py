"""The aggregator on real shareables: refuses what must not get in, whatever came before it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
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

from fedfms.errors import DataError
from fedfms.flare.aggregator import CheckedAggregator
from fedfms.flare.persistor import SharedModel, SharedModelPersistor
from fedfms.flare.selector import AcceptedModelSelector
from fedfms.flare.wire import REPORT, TRAIN, error_reply, update_dxo
from fedfms.methods import Layout, make_method
from fedfms.study import Study
from fedfms.training.server import ServerStore

MODEL = {"decoder.w": torch.zeros(2, 2), "adapters.0.up.bias": torch.zeros(3)}


class Server:
    """An aggregator with just enough of a server around it."""

    def __init__(self, min_sites: int = 2) -> None:
        self.run = tempfile.TemporaryDirectory()
        study = Study(name="test", held_out=("unseen",))
        persistor = SharedModelPersistor(study.to_dict())
        persistor.study, persistor.method, persistor.shared = study, make_method("fedmsa", {}), MODEL
        self.persistor = persistor
        self.panics: list[str] = []
        self.aggregator = CheckedAggregator(min_sites)
        self.aggregator.system_panic = lambda reason, fl_ctx: self.panics.append(reason)
        self.context = FLContext()
        self.context.set_prop(AppConstants.CURRENT_ROUND, 3)
        clients = [SimpleNamespace(name=name) for name in ("a", "b", "c", "unseen")]
        engine = SimpleNamespace(
            get_component=lambda _: persistor, fire_event=lambda *_: None, get_clients=lambda: clients
        )
        self.context.get_engine = lambda: engine
        self.context.get_workspace = lambda: SimpleNamespace(get_run_dir=lambda _: self.run.name)

    def send(self, site: str, shareable: Shareable, round_: int = 3) -> bool:
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: site})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
        return self.aggregator.accept(shareable, self.context)

    def fail(self, site: str, reason: str, round_: int = 3) -> None:
        """As NVFLARE tells of an error reply: by an event, before it ignores it."""
        reply = error_reply(DataError(reason, where=f"site {site}"))
        reply.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
        peer = FLContext()
        peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
        self.context.set_peer_context(peer)
        self.context.set_prop(FLContextKey.TASK_NAME, TRAIN)
        self.context.set_prop(FLContextKey.TASK_RESULT, reply)
        self.aggregator.handle_event(EventType.BEFORE_PROCESS_SUBMISSION, self.context)

    def aggregate(self) -> dict[str, np.ndarray]:
        data: dict[str, np.ndarray] = from_shareable(self.aggregator.aggregate(self.context)).data
        return data


def update(
    value: float = 1.0, samples: Any = 10, round_: int = 3, val_dice: float | None = None, **change: Any
) -> Shareable:
    tensors = {name: torch.full_like(tensor, value) for name, tensor in MODEL.items()}
    dxo = update_dxo(tensors, samples=samples, round_=round_, report={"scores": None}, val_dice=val_dice)
    dxo.data.update(change)
    return dxo.to_shareable()


def test_weights_by_sample_count() -> None:
    server = Server()
    assert server.send("b", update(1.0, samples=30))
    assert server.send("a", update(5.0, samples=10))
    assert np.array_equal(server.aggregate()["decoder.w"], np.full((2, 2), 2.0, np.float32))


def test_the_servers_state_is_on_disk_after_each_round() -> None:
    server = Server()
    server.send("a", update(1.0))
    server.send("b", update(3.0))
    server.aggregate()
    stored = ServerStore(Path(server.run.name) / "fedfms" / "server.pt").load()
    assert stored is not None
    assert stored.round == 4
    assert torch.equal(stored.shared["decoder.w"], torch.full((2, 2), 2.0))


BAD = {
    "nan": lambda: update(float("nan")),
    "inf": lambda: update(float("inf")),
    "broadcastable shape": lambda: update(**{"decoder.w": np.zeros((1, 2), np.float32)}),
    "missing name": lambda: _without(update(), "decoder.w"),
    "extra name": lambda: update(**{"encoder.secret": np.zeros(2, np.float32)}),
    "float64": lambda: update(**{"decoder.w": np.zeros((2, 2))}),
    "no samples": lambda: update(samples=0),
    "negative samples": lambda: update(samples=-5),
    "NaN samples": lambda: update(samples=float("nan")),
    "samples to own the mean": lambda: update(samples=10**15),
    "samples beyond float": lambda: update(samples=10**400),
    "a score above 1": lambda: update(val_dice=1e9),
    "older round": lambda: update(round_=2),
    "differences": lambda: DXO(DataKind.WEIGHT_DIFF, {"decoder.w": np.zeros((2, 2), np.float32)}).to_shareable(),
    "metrics": lambda: DXO(DataKind.METRICS, {REPORT: {}}).to_shareable(),
    "no exchange object": Shareable,
}


def _without(shareable: Shareable, name: str) -> Shareable:
    dxo = from_shareable(shareable)
    del dxo.data[name]
    rebuilt: Shareable = dxo.to_shareable()
    return rebuilt


@pytest.mark.parametrize("first", [True, False], ids=["bad first", "bad last"])
@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_update_is_refused_and_the_good_ones_are_not(kind: str, first: bool) -> None:
    server = Server()
    order = ["bad", "a", "b"] if first else ["a", "b", "bad"]
    answers = {site: server.send(site, BAD[kind]() if site == "bad" else update(2.0)) for site in order}
    assert answers == {"a": True, "b": True, "bad": False}
    assert server.aggregator.rows["bad"]["reason"]
    assert np.array_equal(server.aggregate()["decoder.w"], np.full((2, 2), 2.0, np.float32))
    assert not server.panics


def test_an_old_cookie_is_refused() -> None:
    assert not Server().send("a", update(), round_=2)


def test_a_second_update_of_one_site_is_refused_and_the_first_counts() -> None:
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


def test_a_round_with_too_few_updates_fails_with_the_reason_by_site() -> None:
    server = Server()
    server.send("a", update())
    server.send("b", update(float("nan")))
    server.aggregator.aggregate(server.context)
    assert len(server.panics) == 1
    assert "1 updates accepted, 2 needed" in server.panics[0]
    assert "b: " in server.panics[0]
    assert "not finite" in server.panics[0]


def test_a_round_that_sites_cannot_train_fails_with_their_reasons() -> None:
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


def test_an_update_after_the_round_was_closed_is_not_recorded_as_in_it() -> None:
    server = Server(min_sites=1)
    server.send("a", update())
    server.aggregate()
    assert not server.send("b", update())
    assert "b" not in server.aggregator.rows
    server.aggregator.reset(server.context)
    assert server.send("b", update())


def test_the_best_model_is_chosen_by_accepted_updates_only() -> None:
    """Why there is a selector of ours: NVFLARE's own takes the score of an update that is then refused."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for name, selector in (("ours", AcceptedModelSelector()), ("theirs", IntimeModelSelector())):
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


def test_the_next_round_starts_empty() -> None:
    server = Server()
    server.send("a", update())
    server.aggregator.reset(server.context)
    assert server.send("a", update())


def test_nvflares_own_aggregator_takes_what_ours_refuses() -> None:
    """Why there is one of ours. If NVFLARE mends this, the test fails and the workaround can be looked at again."""
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


def test_the_servers_module_holds_the_shared_tensors_and_nothing_else() -> None:
    module = SharedModel({name: torch.rand(tensor.shape) for name, tensor in MODEL.items()})
    assert set(module.state_dict()) == set(MODEL)


def test_counts_travel_as_nvflare_expects() -> None:
    assert from_shareable(update(samples=12)).get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 12


def _fedra() -> Server:
    """A server of FedRA with four blocks, so that each of the sites a, b and c is sent a part."""
    server = Server()
    method = make_method("fedra", {"fraction": 0.5})
    blocks = tuple((f"adapters.{i}.{place}.w",) for i in range(4) for place in ("after_attention", "beside_mlp"))
    method.bind(Layout({name: "adapter" for (name,) in blocks}, blocks))
    server.persistor.method, server.persistor.shared = method, {name: torch.zeros(2) for (name,) in blocks}
    return server


def test_each_site_gets_its_own_part_and_the_same_when_it_asks_again() -> None:
    server = _fedra()
    get = server.aggregator.tensors_for
    parts = {site: get(site, 3, server.context) for site in "abc"}
    assert all(part is not None and len(part) == 4 for part in parts.values())
    assert {name for part in parts.values() if part for name in part} == set(server.persistor.shared)
    again = get("a", 3, server.context)
    assert again is not None
    assert list(again) == list(parts["a"] or ())
    assert get("unseen", 3, server.context) is None  # held out: the global model, as it is in the task
    newcomer = get("d", 3, server.context)
    assert newcomer is not None
    assert set(newcomer) == set(server.persistor.shared)


def test_a_late_request_of_an_older_round_does_not_draw_for_the_next() -> None:
    server, fresh = _fedra(), _fedra()
    expected = fresh.aggregator.tensors_for("a", 4, fresh.context)
    server.aggregator.tensors_for("a", 3, server.context)
    server.aggregator.reset(server.context)
    server.aggregator.tensors_for("b", 3, server.context)
    first = server.aggregator.tensors_for("a", 4, server.context)
    server.aggregator.tensors_for("b", 3, server.context)
    again = server.aggregator.tensors_for("a", 4, server.context)
    assert list(again or ()) == list(first or ()) == list(expected or ())


def test_an_update_must_hold_what_its_site_was_sent() -> None:
    server = _fedra()
    sent = server.aggregator.tensors_for("a", 3, server.context)
    assert sent is not None
    assert not server.send("a", update_dxo(
        server.persistor.shared, samples=5, round_=3, report={}, val_dice=None).to_shareable())  # fmt: skip
    assert server.send("a", update_dxo(sent, samples=5, round_=3, report={}, val_dice=None).to_shareable())


def test_a_site_without_a_mixture_is_scored_with_the_global_model() -> None:
    server = Server()
    server.persistor.method = make_method("sgca", {})
    for site, value in (("a", 1.0), ("b", 3.0)):
        assert server.send(site, update(value))
    server.aggregate()
    own = server.aggregator.tensors_for("a", None, server.context)
    assert own is not None
    assert set(own) == set(MODEL)
    assert server.aggregator.tensors_for("c", None, server.context) is None
