"""What the server sends each site: its own part or mixture, the same however often and however late it asks."""

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedfms.flare.dispatch import DispatchFilter
from fedfms.flare.messages import VALIDATE, to_arrays, update_dxo
from fedfms.methods import Layout, Tensors, make_method

from .make import MODEL, ROUND, Server, payload_of, update


def _fedra() -> Server:
    """A server of FedRA with four blocks, so that each of the sites a, b and c is sent a part."""
    method = make_method("fedra", {"fraction": 0.5})
    blocks = tuple((f"adapters.{i}.{place}.w",) for i in range(4) for place in ("after_attention", "beside_mlp"))
    method.bind(Layout({name: "adapter" for (name,) in blocks}, blocks))
    return Server(method=method, model={name: torch.zeros(2) for (name,) in blocks})


def _sent(server: Server, site: str, round_: int = ROUND) -> Tensors | None:
    """What the aggregator has for a site that asks for a round; None: the task's global model."""
    dispatch = server.aggregator.dispatch(site, round_, "", server.context)
    return None if dispatch is None else dispatch.tensors


def _next_round(server: Server) -> None:
    """Complete the current round with a valid update of each site."""
    for site in "abc":
        assert server.send(site, _update_of(_sent(server, site) or {}))
    server.aggregate()
    server.aggregator.reset(server.context)
    server.set_round(ROUND + 1)


def _update_of(tensors: Tensors) -> Shareable:
    return update_dxo(payload_of(tensors), samples=5, round_=ROUND, report={}, val_dice=None).to_shareable()


def test_each_site_gets_its_own_part_and_the_same_one_again() -> None:
    server = _fedra()
    parts = {site: _sent(server, site) for site in "abc"}
    assert all(part is not None and len(part) == 4 for part in parts.values())
    assert {name for part in parts.values() if part for name in part} == set(server.model)
    again = _sent(server, "a")
    assert again is not None
    assert list(again) == list(parts["a"] or ())
    assert _sent(server, "unseen") is None  # held out: the task's own global model
    newcomer = _sent(server, "d")
    assert newcomer is not None
    assert set(newcomer) == set(server.model)


def test_a_late_request_for_an_earlier_round_does_not_change_the_draw_of_the_next() -> None:
    server, fresh = _fedra(), _fedra()
    for each in (server, fresh):
        _next_round(each)
    expected = _sent(fresh, "a", ROUND + 1)
    assert _sent(server, "b", ROUND) is None  # the site's answer would be late
    first = _sent(server, "a", ROUND + 1)
    assert _sent(server, "b", ROUND) is None
    again = _sent(server, "a", ROUND + 1)
    assert expected is not None and len(expected) == 4
    assert list(again or ()) == list(first or ()) == list(expected)


def test_an_update_must_hold_what_its_site_was_sent() -> None:
    server = _fedra()
    sent = _sent(server, "a")
    assert sent is not None
    assert not server.send("a", _update_of(server.model))
    assert server.send("a", _update_of(sent))


def _sgca_after_a_round() -> Server:
    server = Server(method=make_method("sgca", {}))
    for site, value in (("a", 1.0), ("b", 3.0)):
        assert server.send(site, update(value))
    server.aggregate()
    return server


def test_a_site_without_a_mixture_is_scored_with_the_global_model() -> None:
    server = _sgca_after_a_round().round_server
    own = server.mixture("a")
    assert own is not None
    assert set(own) == set(MODEL)
    assert server.mixture("c") is None


def test_a_site_that_claims_another_name_does_not_get_that_sites_model() -> None:
    server, filter_ = _sgca_after_a_round(), DispatchFilter()
    peer = FLContext()
    peer.put(ReservedKey.IDENTITY_NAME, "b", private=False, sticky=False)
    server.context.set_peer_context(peer)
    sent = {}
    for asking in "bc":
        task = DXO(DataKind.WEIGHTS, data=to_arrays(MODEL)).to_shareable()
        sent[asking] = from_shareable(filter_.process(server.hand_out(VALIDATE, task, asking), server.context)).data
    own = server.round_server.mixture("b")
    assert own is not None
    assert np.array_equal(sent["b"]["decoder.w"], own["decoder.w"])
    assert not np.array_equal(sent["b"]["decoder.w"], MODEL["decoder.w"])
    assert np.array_equal(sent["c"]["decoder.w"], MODEL["decoder.w"])
