"""What the aggregator has for each site: its own part or mixture, the same however often and however late it asks."""

from __future__ import annotations

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext

from fedfms.flare.dispatch import DispatchFilter
from fedfms.flare.messages import VALIDATE, to_arrays, update_dxo
from fedfms.methods import Layout, make_method

from .make import MODEL, Server, update


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


def test_a_site_that_names_another_is_not_sent_its_model() -> None:
    server, filter_ = Server(), DispatchFilter()
    server.persistor.method = make_method("sgca", {})
    for site, value in (("a", 1.0), ("b", 3.0)):
        assert server.send(site, update(value))
    server.aggregate()
    peer = FLContext()
    peer.put(ReservedKey.IDENTITY_NAME, "b", private=False, sticky=False)
    server.context.set_peer_context(peer)
    sent = {}
    for asks in "bc":
        task = DXO(DataKind.WEIGHTS, data=to_arrays(MODEL)).to_shareable()
        sent[asks] = from_shareable(filter_.process(server.hand_out(VALIDATE, task, asks), server.context)).data
    own = server.aggregator.tensors_for("b", None, server.context)
    assert own is not None
    assert np.array_equal(sent["b"]["decoder.w"], own["decoder.w"])
    assert not np.array_equal(sent["b"]["decoder.w"], MODEL["decoder.w"])
    assert np.array_equal(sent["c"]["decoder.w"], MODEL["decoder.w"])
