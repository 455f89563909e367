"""The faults of single messages in the table of faults (docs/results/faults.md), arriving first and last.

Each passes through the aggregator as a shareable that a site's executor would make. The mean of the honest sites never
changes.
"""

import functools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ServerCommandKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fedfms.flare.dispatch import DispatchFilter
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import HELD_DIGEST, REJECTION, SAMPLES, STAMP, TRAIN, to_arrays, update_dxo

from .make import MODEL, ROUND, Server, compressed_update, payload_of, task_of, update
from .test_executor import STUDY

TOO_DEEP: list[Any] = functools.reduce(lambda inner, _: [inner], range(2000), [])  # str() of it raises
HONEST = {"a": 2.0, "b": 4.0, "c": 3.0}


def _changed(change: Callable[[DXO], object]) -> Shareable:
    dxo = from_shareable(update(3.0))
    change(dxo)
    return dxo.to_shareable()


def _stamped(**change: Any) -> Callable[[Server], Shareable]:
    def make(server: Server) -> Shareable:
        return _changed(lambda dxo: dxo.set_meta_prop(STAMP, {**server.stamp("bad"), **change}))

    return make


FAULTS: dict[str, tuple[Callable[[Server], Shareable], str]] = {
    "nan": (lambda _: update(float("nan")), "not finite"),
    "inf": (lambda _: update(float("inf")), "not finite"),
    "wrong shape": (lambda _: update(**{"decoder.w": np.zeros((2, 3), np.float32)}), r"not float32 \(2, 2\)"),
    "broadcastable shape": (lambda _: update(**{"decoder.w": np.ones((1, 2), np.float32)}), r"not float32 \(2, 2\)"),
    "missing key": (lambda _: _changed(lambda dxo: dxo.data.pop("decoder.w")), "1 tensors are missing"),
    "extra key": (lambda _: update(**{"encoder.secret": np.zeros(2, np.float32)}), "not part of the study"),
    "differences for weights": (lambda _: _changed(lambda dxo: setattr(dxo, "data_kind", DataKind.WEIGHT_DIFF)),
                                "it holds differences, not weights"),
    "count 0": (lambda _: update(samples=0), "number of samples"),
    "count -1": (lambda _: update(samples=-1), "number of samples"),
    "count 1e12": (lambda _: update(samples=1e12), "number of samples"),
    "count nan": (lambda _: update(samples=float("nan")), "number of samples"),
    "replay of the round before": (lambda _: update(3.0, round_=2), "it belongs to round 2, not to round 3"),
    "of another job": (_stamped(job="another"), "it belongs to another job"),
    "another site's update": (_stamped(site="a"), "it names another site"),
    "another schema": (_stamped(schema="1-2-3"), "names and shapes and dtypes of its model"),
    "too deeply nested a schema": (_stamped(schema=TOO_DEEP), "it does not describe its model"),
    "an array for a schema": (_stamped(schema=np.array(["1", "2"])), "it does not describe its model"),
    "no stamp": (_stamped(schema=None), "it does not describe its model"),
    "oversized tensor": (lambda _: update(**{"decoder.w": np.zeros((2000, 2000), np.float32)}), "not float32"),
}  # fmt: skip


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_fault(fault: str, first: bool) -> None:
    server, (make, reason) = Server(min_sites=3), FAULTS[fault]
    for site in ("bad", *HONEST) if first else (*HONEST, "bad"):
        assert server.send(site, make(server) if site == "bad" else update(HONEST[site])) is (site != "bad")
    assert re.search(reason, server.aggregator.rows["bad"]["reason"])
    assert np.array_equal(server.aggregate()["decoder.w"], np.full((2, 2), 3.0, np.float32))
    assert not server.panics
    assert server.round_server.rejection("bad").startswith("the update of round 3 was rejected: ")
    server.aggregator.reset(server.context)
    server.set_round(4)
    assert server.send("bad", update(3.0, round_=4), round_=4)  # a rejected site may answer in the next round


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_norm_x_1e6(first: bool) -> None:
    """It is accepted first: only the comparison with the other updates, when the round is closed, shows it."""
    server = Server(min_sites=3)
    for site in ("bad", *HONEST) if first else (*HONEST, "bad"):
        assert server.send(site, update(3e6 if site == "bad" else HONEST[site]))
    assert np.array_equal(server.aggregate()["decoder.w"], np.full((2, 2), 3.0, np.float32))
    assert not server.aggregator.rows["bad"]["accepted"]
    assert "times as long" in server.aggregator.rows["bad"]["reason"]


def test_duplicate() -> None:
    server = Server()
    assert server.send("a", update(1.0))
    assert not server.send("a", update(9.0))
    assert server.send("b", update(1.0))
    assert server.aggregate()["decoder.w"].max() == 1.0


def test_a_site_that_claims_another_name_in_its_update() -> None:
    """The connection's token proves the sender; the site that is named may still answer."""
    server = Server()
    forged = update(9.0)
    forged.set_header(ServerCommandKey.FL_CLIENT, SimpleNamespace(name="bad"))
    assert not server.send("a", forged)
    assert server.aggregator.rows["bad"]["reason"] == "it names another site than the one that sent it"
    assert "a" not in server.aggregator.rows
    assert server.send("a", update(1.0))


def _peer(server: Server, site: str, **props: Any) -> None:
    peer = FLContext()
    peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    for name, value in props.items():
        peer.put(name, value, private=False, sticky=False)
    server.context.set_peer_context(peer)


def _asked(server: Server, site: str, round_: int = ROUND, claims: str = "", over: bool = False, **props: Any) -> DXO:
    """The task as it leaves the server for a site that asks with these properties.

    Args:
        claims: the name in the site's context, if it is not its own.
        over: the round ends during the request.
    """
    _peer(server, claims or site, **props)
    task = DXO(DataKind.WEIGHTS, data=to_arrays(MODEL)).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, round_)
    task = server.hand_out(TRAIN, task, site)
    if over:
        server.context.get_prop(FLContextKey.RUNNER).current_wf.controller.communicator.finalize_run(server.context)
    return from_shareable(DispatchFilter().process(task, server.context))


def test_more_samples_than_the_first_request_declared() -> None:
    server = Server()
    _asked(server, "a", **{SAMPLES: 8})
    _asked(server, "a", **{SAMPLES: 800})
    assert not server.send("a", update(samples=9))
    assert server.aggregator.rows["a"]["reason"] == "it counts 9 samples, and the site declared 8"
    assert server.send("a", update(samples=8))


def test_the_next_task_has_the_rejection_reason_for_that_site_only() -> None:
    server = Server()
    server.send("bad", update(samples=0))
    server.aggregator.reset(server.context)
    assert "number of samples" in _asked(server, "bad", 4).get_meta_prop(REJECTION)
    assert _asked(server, "a", 4).get_meta_prop(REJECTION) is None
    assert server.round_server.rejection("bad")
    server.send("bad", update())
    assert _asked(server, "bad", 4).get_meta_prop(REJECTION) is None


def test_a_site_that_claims_another_name_in_its_request() -> None:
    """The connection's token proves who asks: the site declares nothing for the other, and learns nothing about it."""
    server = Server()
    server.send("b", update(samples=0))
    assert _asked(server, "c", claims="b", **{SAMPLES: 1}).get_meta_prop(REJECTION) is None
    assert server.send("b", update(samples=10))
    assert not server.send("c", update(samples=10))
    assert server.aggregator.rows["c"]["reason"] == "it counts 10 samples, and the site declared 1"


def test_a_request_while_the_round_ends_has_no_proven_sender() -> None:
    server = Server()
    server.send("b", update(samples=0))
    task = _asked(server, "b", over=True, **{SAMPLES: 1})
    assert task.get_meta_prop(REJECTION) is None
    assert np.array_equal(task.data["decoder.w"], MODEL["decoder.w"])
    assert server.send("b", update(samples=10))


@pytest.mark.parametrize("key", [HELD_DIGEST, SAMPLES])
def test_a_too_deeply_nested_list_in_a_request(key: str) -> None:
    """An exception in the filter would make the round fail. The site counts as one that declared nothing."""
    server = Server(compression="int8")
    assert _asked(server, "bad", **{key: TOO_DEEP}).data_kind == DataKind.WEIGHTS
    assert server.send("bad", compressed_update("int8", 1.0))
    assert server.aggregator.rows["bad"]["samples"] == 10


def test_a_site_logs_the_rejection_reason_on_one_line_and_trains(
    context: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    task = task_of(STUDY)
    dxo = from_shareable(task)
    dxo.set_meta_prop(REJECTION, "the update of round 0 was rejected:\nits reason")
    executor = SiteExecutor(STUDY.to_dict())
    executor.handle_event(EventType.START_RUN, context)
    declared = context.get_all_public_props()[SAMPLES]
    reply = from_shareable(executor.execute(TRAIN, dxo.update_shareable(task), context, Signal()))
    assert "fedfms: a: the update of round 0 was rejected: its reason" in caplog.text
    stamp = reply.get_meta_prop(STAMP)
    assert stamp["site"] == "a"
    assert len(stamp["schema"].split("-")) == 3
    assert declared == reply.get_meta_prop("NUM_STEPS_CURRENT_ROUND")


def test_server_and_site_compute_the_same_schema() -> None:
    server = Server()
    dxo = update_dxo(payload_of(MODEL), samples=1, round_=ROUND, report={}, val_dice=None, stamp=server.stamp("a"))
    assert server.send("a", dxo.to_shareable())
    other = Server(model={**MODEL, "decoder.w": torch.zeros(2, 2, dtype=torch.float64)})
    for arrays in (MODEL, other.model):
        dxo = update_dxo(payload_of(arrays), samples=1, round_=ROUND, report={}, val_dice=None, stamp=server.stamp("a"))
        assert not other.send("a", dxo.to_shareable())
    assert "dtypes of its model" in other.aggregator.rows["a"]["reason"]
