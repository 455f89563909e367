"""Compression in NVFLARE's components: what the server sends and rejects, and what a site declares to hold."""

from pathlib import Path

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

from fedfms.compression import CODECS, DownlinkCompressor, digest
from fedfms.federation.state import ServerStateStore
from fedfms.flare.dispatch import DispatchFilter
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import BASE, HELD_DIGEST, REASON, REPORT, TRAIN, download_dxo, nbytes, to_arrays, update_dxo
from fedfms.methods import Tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study, load_study
from fedfms.training.build import build
from fedfms.training.state import StateStore

from .make import MODEL, ROUND, Server, compressed_update, payload_of
from .test_executor import PHANTOM, SMALL

EACH = pytest.mark.parametrize("codec", sorted(CODECS))


def _ask(server: Server, site: str, held: str | None, round_: int = ROUND) -> DXO:
    """A round's task as it leaves the server through the filter.

    Args:
        held: digest of what the site declares to hold; None: it declares nothing.
    """
    peer = FLContext()
    peer.put(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    if held is not None:
        peer.put(HELD_DIGEST, held, private=False, sticky=False)
    server.context.set_peer_context(peer)
    server.context.set_prop(FLContextKey.TASK_NAME, TRAIN)
    task = DXO(DataKind.WEIGHTS, data=to_arrays(MODEL), meta={"other": 1}).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, round_)
    return from_shareable(DispatchFilter().process(task, server.context))


@EACH
def test_differences_are_decoded_added_and_averaged(codec: str) -> None:
    server = Server(compression=codec)
    for site in "ab":
        assert _ask(server, site, digest(MODEL)).data_kind == DataKind.WEIGHT_DIFF
    assert server.send("a", compressed_update(codec, 1.0))
    assert server.send("b", compressed_update(codec, 3.0))
    assert server.aggregator.rows["a"]["bytes_up"] < sum(tensor.numel() * 4 for tensor in MODEL.values())
    assert np.allclose(server.aggregate()["decoder.w"], 2.0, rtol=0.01)
    store = ServerStateStore(Path(server.run.name) / "fedfms" / "server.pt")
    mirrors = store.mirrors()
    assert set(mirrors) == {"a", "b", "c"}
    assert mirrors["a"]["decoder.w"] is mirrors["c"]["decoder.w"]  # stored once, and one object again after loading
    assert torch.equal(mirrors["a"]["decoder.w"], MODEL["decoder.w"])


def _nan_scale() -> np.ndarray:
    array = CODECS["int8"].encode(torch.ones(2, 2))
    array[0, :2] = np.array([0x7FC0], "<u2").view(np.uint8)
    return array


INVALID = {
    "NaN scale": {"decoder.w": _nan_scale()},
    "another shape": {"decoder.w": np.zeros((4, 3), np.uint8)},
    "too long a row": {"decoder.w": np.zeros((2, 5), np.uint8)},
    "without scales": {"decoder.w": np.zeros((2, 2), np.uint8)},
    "another codec's form": {"decoder.w": np.zeros((2, 2), np.float16)},
    "whole": {"decoder.w": np.zeros((2, 2), np.float32)},
    "not an array": {"decoder.w": b"1234"},
    "extra name": {"encoder.secret": np.zeros((1, 4), np.uint8)},
    "another base": {"base": digest({})},
    "several bases": {"base": np.array([1, 2])},
}


@pytest.mark.parametrize("first", [True, False], ids=["invalid first", "invalid last"])
@pytest.mark.parametrize("kind", sorted(INVALID))
def test_an_invalid_message_is_rejected_and_the_valid_ones_are_accepted(kind: str, first: bool) -> None:
    server = Server(compression="int8")
    for site in ("a", "b", "c"):
        _ask(server, site, digest(MODEL))
    order = ["c", "a", "b"] if first else ["a", "b", "c"]
    answers = {site: server.send(site, compressed_update("int8", 2.0, **(INVALID[kind] if site == "c" else {})))
               for site in order}  # fmt: skip
    assert answers == {"a": True, "b": True, "c": False}
    assert server.aggregator.rows["c"]["reason"]
    assert np.allclose(server.aggregate()["decoder.w"], 2.0, rtol=0.01)


@pytest.mark.parametrize("codec", ["bfloat16", "float16"])
def test_nan_is_rejected(codec: str) -> None:
    server = Server(compression=codec)
    _ask(server, "a", digest(MODEL))
    bits = np.full((2, 2), {"bfloat16": 0x7FC0, "float16": 0x7E00}[codec], np.uint16)
    array = bits if codec == "bfloat16" else bits.view(np.float16)
    assert not server.send("a", compressed_update(codec, 1.0, **{"decoder.w": array}))
    assert "not finite" in server.aggregator.rows["a"]["reason"]


def test_whole_weights_are_rejected_where_differences_are_expected() -> None:
    server = Server(compression="int8")
    _ask(server, "a", digest(MODEL))
    whole = update_dxo(payload_of(MODEL), samples=10, round_=ROUND, report={}, val_dice=None)
    assert not server.send("a", whole.to_shareable())
    assert server.aggregator.rows["a"]["reason"] == "it holds weights, not differences"


@pytest.mark.parametrize("held", [None, "", "another torch version's"])
def test_a_site_that_does_not_hold_the_base_gets_the_whole_model(held: str | None) -> None:
    server = Server(compression="int8")
    task = _ask(server, "a", held)
    assert (task.data_kind, task.get_meta_prop(BASE)) == (DataKind.WEIGHTS, "")
    assert np.array_equal(task.data["decoder.w"], MODEL["decoder.w"].numpy())
    assert task.get_meta_prop("other") == 1
    assert server.send("a", compressed_update("int8", 1.0))  # its differences are accepted


def test_a_site_may_join_during_a_round_and_ask_twice() -> None:
    server = Server(min_sites=1, compression="int8")
    assert _ask(server, "newcomer", None).data_kind == DataKind.WEIGHTS
    assert server.send("newcomer", compressed_update("int8", 1.0))
    for _ in range(2):
        assert _ask(server, "b", digest(MODEL)).data_kind == DataKind.WEIGHT_DIFF
    assert not server.send("unknown", compressed_update("int8", 1.0))  # it was sent nothing
    assert server.send("b", compressed_update("int8", 1.0))


def test_a_late_request_for_an_earlier_round_changes_no_mirror() -> None:
    server = Server(min_sites=1, compression="int8")
    _ask(server, "a", digest(MODEL))
    assert server.send("a", compressed_update("int8", 1.0))
    server.aggregate()
    server.aggregator.reset(server.context)
    server.set_round(ROUND + 1)
    task = _ask(server, "a", digest(MODEL), ROUND + 1)
    mirror = server.round_server.mirrors["a"]
    late = _ask(server, "a", digest(MODEL), ROUND)
    assert late.data_kind == DataKind.WEIGHTS
    assert digest(server.round_server.mirrors["a"]) == digest(mirror) != digest(MODEL)
    again = _ask(server, "a", digest(MODEL), ROUND + 1)
    assert (again.data_kind, again.get_meta_prop(BASE)) == (task.data_kind, task.get_meta_prop(BASE))
    assert server.send("a", compressed_update("int8", 1.0, digest(mirror), ROUND + 1), ROUND + 1)


def test_a_site_that_joins_in_a_later_round_gets_the_bits_that_the_others_hold() -> None:
    server = Server(min_sites=1, compression="int8")
    _ask(server, "a", digest(MODEL))
    assert server.send("a", compressed_update("int8", 0.3))
    server.aggregate()
    server.aggregator.reset(server.context)
    server.set_round(ROUND + 1)
    assert _ask(server, "a", digest(MODEL), ROUND + 1).data_kind == DataKind.WEIGHT_DIFF
    task = _ask(server, "newcomer", None, ROUND + 1)
    assert (task.data_kind, task.get_meta_prop(BASE)) == (DataKind.WEIGHTS, "")
    mirrors = server.round_server.mirrors
    assert all(mirrors["newcomer"][name] is mirrors["a"][name] for name in MODEL)
    assert all(np.array_equal(task.data[name], mirrors["a"][name].numpy()) for name in MODEL)
    assert server.send("newcomer", compressed_update("int8", 1.0, digest(mirrors["a"]), ROUND + 1), ROUND + 1)


def test_a_held_out_site_gets_the_whole_global_model() -> None:
    task = _ask(Server(compression="int8"), "unseen", None)
    assert task.data_kind == DataKind.WEIGHTS
    assert task.get_meta_prop(BASE) is None


def _study(codec: str) -> Study:
    return load_study(PHANTOM, overrides=[*SMALL, f"federation.compression={codec}"])


def _round(
    executor: SiteExecutor, compressor: DownlinkCompressor, target: Tensors, round_: int, context: FLContext
) -> Shareable:
    """The executor's reply to a round in which the server sends `target`."""
    compressor.advance({"a": target}, target)
    download = compressor.download("a", str(context.get_all_public_props().get(HELD_DIGEST, "")))
    task = download_dxo(download, {}).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, round_)
    return executor.execute(TRAIN, task, context, Signal())


@pytest.mark.slow
@EACH
def test_a_site_declares_what_it_holds_before_each_request(codec: str, context: FLContext, tmp_path: Path) -> None:
    study, compressor = _study(codec), DownlinkCompressor(CODECS[codec])
    shared = build(study, SiteSettings()).shared()
    executor = SiteExecutor(study.to_dict())
    executor.handle_event(EventType.START_RUN, context)
    assert context.get_all_public_props()[HELD_DIGEST] == digest(shared)
    sent = from_shareable(_round(executor, compressor, shared, 0, context))
    assert sent.data_kind == DataKind.WEIGHT_DIFF
    assert sent.get_meta_prop(REPORT)["bytes_down"] == nbytes(sent.data) < sum(t.numel() * 2.5 for t in shared.values())
    following = {name: tensor + 0.01 for name, tensor in shared.items()}
    again = from_shareable(_round(executor, compressor, following, 1, context))
    assert again.get_meta_prop(BASE) == compressor.holds("a") == context.get_all_public_props()[HELD_DIGEST]
    # The residual and what the site holds are stored; a new process declares the same.
    state = StateStore(tmp_path / "run" / "fedfms" / "state").load()
    assert state is not None
    assert any(tensor.any() for tensor in state.residual.values())
    fresh = FLContext()
    fresh.put(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=True)
    fresh.get_workspace, fresh.get_job_id = context.get_workspace, context.get_job_id
    SiteExecutor(study.to_dict()).handle_event(EventType.START_RUN, fresh)
    assert fresh.get_all_public_props()[HELD_DIGEST] == state.held_digest


def test_differences_to_a_model_that_the_site_does_not_hold_are_an_error(context: FLContext) -> None:
    study, compressor = _study("int8"), DownlinkCompressor(CODECS["int8"])
    other = {name: tensor + 1 for name, tensor in build(study, SiteSettings()).shared().items()}
    context.set_prop(HELD_DIGEST, digest(other), private=False, sticky=True)  # false
    executor = SiteExecutor(study.to_dict())
    reply = _round(executor, compressor, other, 0, context)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    reason = "site a, round 0: the server sent differences to a model that the site does not hold"
    assert reason in reply.get_header(REASON)
    # The site withdraws the digest, so that it gets the whole model next, as the error says.
    again = from_shareable(_round(executor, compressor, other, 1, context))
    assert again.get_meta_prop(BASE) == compressor.holds("a")


def test_without_compression_a_site_declares_no_digest_and_rejects_differences(context: FLContext) -> None:
    executor = SiteExecutor(_study("none").to_dict())
    executor.handle_event(EventType.START_RUN, context)
    assert HELD_DIGEST not in context.get_all_public_props()
    reply = executor.execute(TRAIN, DXO(DataKind.WEIGHT_DIFF, data={}).to_shareable(), context, Signal())
    assert "the task has WEIGHT_DIFF, not weights" in reply.get_header(REASON)
