"""A compressed wire in FLARE's parts: what the server sends whom, what it refuses, and what a site says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fedfms.compression import CODECS, DownlinkCompressor, digest, upload
from fedfms.federation.state import ServerStateStore
from fedfms.flare.dispatch import DispatchFilter
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import BASE, HOLDS, REASON, REPORT, TRAIN, download_dxo, nbytes, to_arrays, update_dxo
from fedfms.methods import Tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study, load_study
from fedfms.training.build import build
from fedfms.training.link import Coded
from fedfms.training.state import StateStore

from .make import MODEL, Server
from .test_executor import PHANTOM, SMALL

ANY = pytest.mark.parametrize("wire", sorted(CODECS))


def _ask(server: Server, site: str, claim: str | None, round_: int = 3) -> DXO:
    """The task of a round as it leaves the server: through the filter, with what the site says that it holds."""
    peer = FLContext()
    peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    if claim is not None:
        peer.put(HOLDS, claim, private=False, sticky=False)
    server.context.set_peer_context(peer)
    server.context.set_prop(FLContextKey.TASK_NAME, TRAIN)
    task = DXO(DataKind.WEIGHTS, data=to_arrays(MODEL), meta={"kept": 1}).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, round_)
    return from_shareable(DispatchFilter().process(task, server.context))


def _coded(server: Server, wire: str, value: float, base: str = digest(MODEL), **change: Any) -> Shareable:
    trained = {name: torch.full_like(tensor, value) for name, tensor in MODEL.items()}
    sent = upload(trained, MODEL, {}, CODECS[wire])
    coded = Coded({**sent.arrays, **change}, base)
    dxo = update_dxo(trained, samples=10, round_=3, report={"scores": None}, val_dice=0.5, coded=coded)
    return dxo.to_shareable()


@ANY
def test_differences_are_decoded_added_and_averaged(wire: str) -> None:
    server = Server(compression=wire)
    for site in "ab":
        assert _ask(server, site, digest(MODEL)).data_kind == DataKind.WEIGHT_DIFF
    assert server.send("a", _coded(server, wire, 1.0))
    assert server.send("b", _coded(server, wire, 3.0))
    assert server.aggregator.rows["a"]["bytes_up"] < sum(tensor.numel() * 4 for tensor in MODEL.values())
    assert np.allclose(server.aggregate()["decoder.w"], 2.0, rtol=0.01)
    store = ServerStateStore(Path(server.run.name) / "fedfms" / "server.pt")
    mirrors = store.mirrors()
    assert set(mirrors) == {"a", "b", "c"}
    assert mirrors["a"]["decoder.w"] is mirrors["c"]["decoder.w"]  # written once, and one again when it is read
    assert torch.equal(mirrors["a"]["decoder.w"], MODEL["decoder.w"])


def _nan_scale() -> np.ndarray:
    array = CODECS["int8"].encode(torch.ones(2, 2))
    array[0, :2] = np.array([0x7FC0], "<u2").view(np.uint8)
    return array


BAD = {
    "NaN scale": {"decoder.w": _nan_scale()},
    "another shape": {"decoder.w": np.zeros((4, 3), np.uint8)},
    "a row too long": {"decoder.w": np.zeros((2, 5), np.uint8)},
    "no scales": {"decoder.w": np.zeros((2, 2), np.uint8)},
    "another form": {"decoder.w": np.zeros((2, 2), np.float16)},
    "whole": {"decoder.w": np.zeros((2, 2), np.float32)},
    "no array": {"decoder.w": b"1234"},
    "extra name": {"encoder.secret": np.zeros((1, 4), np.uint8)},
    "another base": {"base": digest({})},
    "bases": {"base": np.array([1, 2])},
}


@pytest.mark.parametrize("first", [True, False], ids=["bad first", "bad last"])
@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_message_is_refused_and_the_good_ones_are_not(kind: str, first: bool) -> None:
    server = Server(compression="int8")
    for site in ("a", "b", "c"):
        _ask(server, site, digest(MODEL))
    order = ["c", "a", "b"] if first else ["a", "b", "c"]
    answers = {site: server.send(site, _coded(server, "int8", 2.0, **(BAD[kind] if site == "c" else {})))
               for site in order}  # fmt: skip
    assert answers == {"a": True, "b": True, "c": False}
    assert server.aggregator.rows["c"]["reason"]
    assert np.allclose(server.aggregate()["decoder.w"], 2.0, rtol=0.01)


@pytest.mark.parametrize("wire", ["bfloat16", "float16"])
def test_a_number_that_is_none_is_refused(wire: str) -> None:
    server = Server(compression=wire)
    _ask(server, "a", digest(MODEL))
    bits = np.full((2, 2), {"bfloat16": 0x7FC0, "float16": 0x7E00}[wire], np.uint16)
    array = bits if wire == "bfloat16" else bits.view(np.float16)
    assert not server.send("a", _coded(server, wire, 1.0, **{"decoder.w": array}))
    assert "not finite" in server.aggregator.rows["a"]["reason"]


def test_whole_weights_are_refused_where_differences_are_due() -> None:
    server = Server(compression="int8")
    _ask(server, "a", digest(MODEL))
    whole = update_dxo(MODEL, samples=10, round_=3, report={}, val_dice=None)
    assert not server.send("a", whole.to_shareable())
    assert server.aggregator.rows["a"]["reason"] == "it holds weights, not differences"


@pytest.mark.parametrize("claim", [None, "", "another torch version's"])
def test_a_site_that_does_not_hold_the_base_gets_the_whole_at_once(claim: str | None) -> None:
    server = Server(compression="int8")
    task = _ask(server, "a", claim)
    assert (task.data_kind, task.get_meta_prop(BASE)) == (DataKind.WEIGHTS, "")
    assert np.array_equal(task.data["decoder.w"], MODEL["decoder.w"].numpy())
    assert task.get_meta_prop("kept") == 1
    assert server.send("a", _coded(server, "int8", 1.0))  # and its differences count


def test_a_newcomer_in_the_middle_of_a_round_and_a_site_that_asks_twice() -> None:
    server = Server(min_sites=1, compression="int8")
    assert _ask(server, "newcomer", None).data_kind == DataKind.WEIGHTS
    assert server.send("newcomer", _coded(server, "int8", 1.0))
    for _ in range(2):
        assert _ask(server, "b", digest(MODEL)).data_kind == DataKind.WEIGHT_DIFF
    assert not server.send("unknown", _coded(server, "int8", 1.0))  # was sent nothing
    assert server.send("b", _coded(server, "int8", 1.0))


def test_a_late_request_of_an_older_round_changes_no_mirror() -> None:
    server = Server(compression="int8")
    _ask(server, "a", digest(MODEL))
    _ask(server, "a", digest(MODEL), round_=4)
    holds = server.aggregator._downlink.holds("a")
    late = _ask(server, "a", digest(MODEL), round_=3)
    assert late.data_kind == DataKind.WEIGHTS
    assert server.aggregator._downlink.holds("a") == holds


def test_a_held_out_site_gets_the_global_model_itself() -> None:
    task = _ask(Server(compression="int8"), "unseen", None)
    assert task.data_kind == DataKind.WEIGHTS
    assert task.get_meta_prop(BASE) is None


def _study(wire: str) -> Study:
    return load_study(PHANTOM, overrides=[*SMALL, f"federation.compression={wire}"])


def _round(
    executor: SiteExecutor, downlink: DownlinkCompressor, target: Tensors, round_: int, at: FLContext
) -> Shareable:
    downlink.advance({"a": target}, target)
    message = downlink.message("a", str(at.get_all_public_props().get(HOLDS, "")))
    task = download_dxo(message, {}).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, round_)
    return executor.execute(TRAIN, task, at, Signal())


@ANY
def test_a_site_says_what_it_holds_before_it_asks(wire: str, context: FLContext, tmp_path: Path) -> None:
    study, downlink = _study(wire), DownlinkCompressor(CODECS[wire])
    shared = build(study, SiteSettings()).shared()
    executor = SiteExecutor(study.to_dict())
    executor.handle_event(EventType.START_RUN, context)
    assert context.get_all_public_props()[HOLDS] == digest(shared)
    sent = from_shareable(_round(executor, downlink, shared, 0, context))
    assert sent.data_kind == DataKind.WEIGHT_DIFF
    assert sent.get_meta_prop(REPORT)["bytes_down"] == nbytes(sent.data) < sum(t.numel() * 2.5 for t in shared.values())
    following = {name: tensor + 0.01 for name, tensor in shared.items()}
    again = from_shareable(_round(executor, downlink, following, 1, context))
    assert again.get_meta_prop(BASE) == downlink.holds("a") == context.get_all_public_props()[HOLDS]
    # What stays: the residual and what is held; a process made anew claims the same.
    state = StateStore(tmp_path / "run" / "fedfms" / "state").load()
    assert state is not None
    assert any(tensor.any() for tensor in state.residual.values())
    fresh = FLContext()
    fresh.put(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=True)
    fresh.get_workspace, fresh.get_job_id = context.get_workspace, context.get_job_id
    SiteExecutor(study.to_dict()).handle_event(EventType.START_RUN, fresh)
    assert fresh.get_all_public_props()[HOLDS] == state.holds


def test_a_change_of_what_a_site_does_not_hold_is_told(context: FLContext) -> None:  # noqa: F811
    study, downlink = _study("int8"), DownlinkCompressor(CODECS["int8"])
    other = {name: tensor + 1 for name, tensor in build(study, SiteSettings()).shared().items()}
    context.set_prop(HOLDS, digest(other), private=False, sticky=True)  # a lie
    executor = SiteExecutor(study.to_dict())
    reply = _round(executor, downlink, other, 0, context)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "site a: the server sent changes of a model that the site does not hold" in reply.get_header(REASON)
    # The claim is taken back, so that it gets the whole model next, as the error says.
    assert from_shareable(_round(executor, downlink, other, 1, context)).get_meta_prop(BASE) == downlink.holds("a")


def test_in_float32_a_site_claims_nothing_and_differences_are_refused(context: FLContext) -> None:  # noqa: F811
    executor = SiteExecutor(_study("none").to_dict())
    executor.handle_event(EventType.START_RUN, context)
    assert HOLDS not in context.get_all_public_props()
    reply = executor.execute(TRAIN, DXO(DataKind.WEIGHT_DIFF, data={}).to_shareable(), context, Signal())
    assert "the task came with WEIGHT_DIFF" in reply.get_header(REASON)
