"""The site's filter: what may leave, and what may not, however it is wrapped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.fuel.sec.audit import Auditor, AuditService

from fedfms.compression import CODECS, digest, upload
from fedfms.errors import TrainingError
from fedfms.flare.messages import REASON, REPORT, error_reply, update_dxo
from fedfms.flare.privacy_filter import ACTION, MAX_NUMBERS, MAX_REASON, MAX_TEXT, SharedOnly
from fedfms.training.link import Coded

ALLOWED = {"adapter.weight": 32, "adapter.bias": 8}  # bytes
SCORES = {"scores": {"dice": 0.5, "standard": {"left ventricle": {"dice": None, "iou": 0.4}}}, "part": "val"}


@pytest.fixture
def own() -> SharedOnly:
    return SharedOnly(ALLOWED, max_mb=0.001, max_tensors=4)


def _update(beside: dict[str, Any] | None = None, **more: Any) -> Shareable:
    tensors = {"adapter.weight": torch.zeros(2, 4), "adapter.bias": torch.zeros(2)}
    dxo = update_dxo(tensors, samples=3, round_=1, report=SCORES | {"seconds": 1.5}, val_dice=0.5)
    dxo.data.update(more)
    dxo.meta.update(beside or {})
    reply: Shareable = dxo.to_shareable()
    return reply


def _context() -> FLContext:
    context = FLContext()
    context.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=True, sticky=True)
    context.set_prop(FLContextKey.TASK_NAME, "train")
    context.set_prop(FLContextKey.CURRENT_JOB_ID, "job-1")
    return context


def test_what_our_jobs_send_leaves(own: SharedOnly) -> None:
    scored = DXO(DataKind.METRICS, data={REPORT: SCORES}).to_shareable()
    failed = error_reply(TrainingError("the loss is not finite (nan)", where="site a, round 1", do="lower train.lr"))
    for reply in (_update(), scored, failed, make_reply(ReturnCode.TASK_ABORTED)):
        assert own.process(reply, _context()) is reply


def test_a_compressed_form_of_an_allowed_tensor_leaves(own: SharedOnly) -> None:
    packed = {"q": np.zeros((2, 4), np.int8), "scale": np.zeros(2, np.float32)}
    assert own.refusal(_update(**{"adapter.weight": packed})) is None


_IMAGE = np.zeros((4, 4), np.uint8)


def _nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (_update(image=_IMAGE), "a tensor that the site has not allowed"),
        (_update({"fedfms_report": {"mask": _IMAGE}}), "a tensor that the site has not allowed"),
        (_update({"image": np.zeros(1)}), "a tensor that the site has not allowed"),
        (_update({"image": torch.zeros(4)}), "there is a Tensor"),
        (_update(**{"adapter.bias": np.zeros(3)}), "larger than the one"),
        (_update(**{"adapter.bias": np.array(["name"])}), "something else than numbers"),
        (_update(**{"adapter.bias": np.array([{}], dtype=object)}), "something else than numbers"),
        (_update({"image": b"\x89PNG"}), "there is a bytes"),
        (_update({"patient": "Doe, Jane 1970"}), "a text that is no word"),
        (_update({"path": "/data/patients"}), "a text that is no word"),
        (_update({"word": "a" * 65}), "a text that is no word"),
        (_update({"a\nb": 1}), "a key that is no name"),
        (_update({"x" * 201: 1}), "a key that is no name"),
        (_update({"pixels": [0.5] * (MAX_NUMBERS + 1)}), "more than 2000 numbers"),
        (_update({"lists": [[]] * (MAX_NUMBERS + 1)}), "more than 2000 numbers"),
        (_update({"pixels": int.from_bytes(bytes(range(1, 100)), "big")}), "more than eight bytes"),
        (_update({"pixels": -(2**63) - 1}), "more than eight bytes"),
        (_update({"pixels": np.longdouble(0.1)}), "more than eight bytes"),
        (_update({"words": ["a" * 64] * (MAX_TEXT // 64 + 1)}), "characters of text"),
        (_update({"keys": {f"{i:0100d}": {} for i in range(MAX_TEXT // 100 + 1)}}), "characters of text"),
        (_update({"keys": {"Doe\nJane": {}}}), "a key that is no name"),
        (_update({"keys": {("Doe", "Jane"): {}}}), "a key that is no name"),
        (_update({"deep": _nested(5000)}), "more than 2000 numbers"),
        (_update({"array": np.ma.masked_array([1.0], mask=[True])}), "there is a MaskedArray"),
        (_update({"object": object()}), "there is a object"),
        (_update(**{"adapter.weight": [np.zeros(4)] * 9}), "more than 4 tensors"),
        (_update(**{"adapter.weight": [np.zeros(4)] * 3}) | {"adapter.bias": np.zeros(1)}, "more than 4 tensors"),
    ],
)
def test_anything_else_stays(own: SharedOnly, reply: Shareable, reason: str) -> None:
    told = own.refusal(reply if isinstance(reply, Shareable) else _again(reply))
    assert told is not None and reason in told


def _again(content: dict[str, Any]) -> Shareable:
    reply = Shareable()
    reply.update(content)
    return reply


@pytest.mark.parametrize("wire", CODECS)
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 1), (3, 4), (2, 3, 3, 3), ()])
def test_every_form_of_the_wire_leaves_within_the_bytes_of_the_plain_one(wire: str, shape: tuple[int, ...]) -> None:
    """Digest, rows and their scales too; but not one byte more than the plain tensor has."""
    size = 4 * math.prod(shape)
    tensors = {"adapter.weight": torch.rand(shape)}
    coded = upload(tensors, {"adapter.weight": torch.zeros(shape)}, {}, CODECS[wire])
    form = Coded(coded.arrays, digest(tensors))
    reply = update_dxo(tensors, samples=3, round_=1, report=SCORES, val_dice=0.5, coded=form).to_shareable()
    assert SharedOnly({"adapter.weight": size}, size / 1e6, 1).refusal(reply) is None
    less = coded.arrays["adapter.weight"].nbytes - 1
    assert "larger" in str(SharedOnly({"adapter.weight": max(less, 1)}, 1, 1).refusal(reply))


def test_bytes_have_a_limit_of_their_own() -> None:
    assert "more than 1 kB" in str(SharedOnly({"adapter.weight": 8000}, 0.001, 4).refusal(
        DXO(DataKind.WEIGHTS, data={"adapter.weight": np.zeros(1000)}).to_shareable()
    ))  # fmt: skip


def test_a_reason_is_a_line_of_a_failure_and_of_nothing_else(own: SharedOnly) -> None:
    reply = _update()
    reply.set_header(REASON, "a line, of words")
    assert own.refusal(reply) is not None
    elsewhere = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    elsewhere["lines"] = [{REASON: "a line, of words"}] * 9
    assert own.refusal(elsewhere) == "there is a text that is no word"
    failed = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    failed.set_header(REASON, "x" * (MAX_REASON + 1))
    assert own.refusal(failed) == "the reason is too long"


def test_a_refusal_is_told_to_the_server_and_in_the_sites_audit(
    own: SharedOnly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditService, "the_auditor", Auditor(str(tmp_path / "audit.txt")))
    reply = own.process(_update(image=_IMAGE), _context())
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert str(reply.get_header(REASON)).startswith("site site-1: the site's own policy lets no result leave in which")
    assert not [key for key in reply if key != "__headers__"]
    assert f"[A:{ACTION}]" in (tmp_path / "audit.txt").read_text()
    assert own.refusal(reply) is None


@pytest.mark.parametrize("tensors", [{"a": "8"}, {"a": 0}, ["a"]])
def test_a_policy_that_is_none_does_not_load(tensors: Any) -> None:
    with pytest.raises(ValueError, match="numbers of bytes"):
        SharedOnly(tensors, 1, 1)
