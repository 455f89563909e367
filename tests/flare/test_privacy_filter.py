"""The site's privacy filter: what may leave and what may not, however it is nested."""

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

from fedfms.compression import CODECS, Payload, digest, upload
from fedfms.errors import TrainingError
from fedfms.flare.messages import REASON, REPORT, error_reply, to_arrays, update_dxo
from fedfms.flare.privacy_filter import ACTION, MAX_NUMBERS, MAX_REASON, MAX_TEXT, PrivacyFilter

ALLOWED = {"adapter.weight": 32, "adapter.bias": 8}  # bytes
SCORES = {"scores": {"dice": 0.5, "standard": {"left ventricle": {"dice": None, "iou": 0.4}}}, "part": "val"}


@pytest.fixture
def privacy() -> PrivacyFilter:
    return PrivacyFilter(ALLOWED, max_mb=0.001, max_tensors=4)


def _update(meta: dict[str, Any] | None = None, **more: Any) -> Shareable:
    tensors = {"adapter.weight": torch.zeros(2, 4), "adapter.bias": torch.zeros(2)}
    dxo = update_dxo(Payload(to_arrays(tensors)), samples=3, round_=1, report=SCORES | {"seconds": 1.5}, val_dice=0.5)
    dxo.data.update(more)
    dxo.meta.update(meta or {})
    reply: Shareable = dxo.to_shareable()
    return reply


def _context() -> FLContext:
    context = FLContext()
    context.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=True, sticky=True)
    context.set_prop(FLContextKey.TASK_NAME, "train")
    context.set_prop(FLContextKey.CURRENT_JOB_ID, "job-1")
    return context


def test_replies_of_this_packages_jobs_leave(privacy: PrivacyFilter) -> None:
    scored = DXO(DataKind.METRICS, data={REPORT: SCORES}).to_shareable()
    failed = error_reply(TrainingError("the loss is not finite (nan)", where="site a, round 1", do="lower train.lr"))
    for reply in (_update(), scored, failed, make_reply(ReturnCode.TASK_ABORTED)):
        assert privacy.process(reply, _context()) is reply


def test_a_compressed_form_of_an_allowed_tensor_leaves(privacy: PrivacyFilter) -> None:
    packed = {"q": np.zeros((2, 4), np.int8), "scale": np.zeros(2, np.float32)}
    assert privacy.rejection_reason(_update(**{"adapter.weight": packed})) is None


_IMAGE = np.zeros((4, 4), np.uint8)


def _nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (_update(image=_IMAGE), "not on the site's allow-list"),
        (_update({"fedfms_report": {"mask": _IMAGE}}), "not on the site's allow-list"),
        (_update({"image": np.zeros(1)}), "not on the site's allow-list"),
        (_update({"image": torch.zeros(4)}), "of type Tensor"),
        (_update(**{"adapter.bias": np.zeros(3)}), "larger than the site allows"),
        (_update(**{"adapter.bias": np.array(["name"])}), "a tensor is not numeric"),
        (_update(**{"adapter.bias": np.array([{}], dtype=object)}), "a tensor is not numeric"),
        (_update({"image": b"\x89PNG"}), "of type bytes"),
        (_update({"patient": "Doe, Jane 1970"}), "not a short word"),
        (_update({"path": "/data/patients"}), "not a short word"),
        (_update({"word": "a" * 65}), "not a short word"),
        (_update({"a\nb": 1}), "not a short printable text"),
        (_update({"x" * 201: 1}), "not a short printable text"),
        (_update({"pixels": [0.5] * (MAX_NUMBERS + 1)}), "more than 2000 numbers"),
        (_update({"lists": [[]] * (MAX_NUMBERS + 1)}), "more than 2000 numbers"),
        (_update({"pixels": int.from_bytes(bytes(range(1, 100)), "big")}), "more than eight bytes"),
        (_update({"pixels": -(2**63) - 1}), "more than eight bytes"),
        (_update({"pixels": np.longdouble(0.1)}), "more than eight bytes"),
        (_update({"words": ["a" * 64] * (MAX_TEXT // 64 + 1)}), "characters of text"),
        (_update({"keys": {f"{i:0100d}": {} for i in range(MAX_TEXT // 100 + 1)}}), "characters of text"),
        (_update({"keys": {"Doe\nJane": {}}}), "not a short printable text"),
        (_update({"keys": {("Doe", "Jane"): {}}}), "not a short printable text"),
        (_update({"deep": _nested(5000)}), "more than 2000 numbers"),
        (_update({"array": np.ma.masked_array([1.0], mask=[True])}), "of type MaskedArray"),
        (_update({"object": object()}), "of type object"),
        (_update(**{"adapter.weight": [np.zeros(4)] * 9}), "more than 4 tensors"),
        (_update(**{"adapter.weight": [np.zeros(4)] * 3}) | {"adapter.bias": np.zeros(1)}, "more than 4 tensors"),
    ],
)
def test_anything_else_is_blocked(privacy: PrivacyFilter, reply: Shareable, reason: str) -> None:
    found = privacy.rejection_reason(reply if isinstance(reply, Shareable) else _shareable(reply))
    assert found is not None and reason in found


def _shareable(content: dict[str, Any]) -> Shareable:
    reply = Shareable()
    reply.update(content)
    return reply


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 1), (3, 4), (2, 3, 3, 3), ()])
def test_each_compressed_form_fits_into_the_bytes_of_the_plain_tensor(compression: str, shape: tuple[int, ...]) -> None:
    """Including the digest, rows and their scales; one byte less is too little."""
    size = 4 * math.prod(shape)
    tensors = {"adapter.weight": torch.rand(shape)}
    coded = upload(tensors, {"adapter.weight": torch.zeros(shape)}, {}, CODECS[compression])
    payload = Payload(coded.arrays, digest(tensors))
    reply = update_dxo(payload, samples=3, round_=1, report=SCORES, val_dice=0.5).to_shareable()
    assert PrivacyFilter({"adapter.weight": size}, size / 1e6, 1).rejection_reason(reply) is None
    less = coded.arrays["adapter.weight"].nbytes - 1
    assert "larger" in str(PrivacyFilter({"adapter.weight": max(less, 1)}, 1, 1).rejection_reason(reply))


def test_total_bytes_are_limited() -> None:
    assert "more than 1 kB" in str(PrivacyFilter({"adapter.weight": 8000}, 0.001, 4).rejection_reason(
        DXO(DataKind.WEIGHTS, data={"adapter.weight": np.zeros(1000)}).to_shareable()
    ))  # fmt: skip


def test_a_reason_may_leave_only_in_the_header_of_a_failure(privacy: PrivacyFilter) -> None:
    reply = _update()
    reply.set_header(REASON, "a line, of words")
    assert privacy.rejection_reason(reply) is not None
    elsewhere = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    elsewhere["lines"] = [{REASON: "a line, of words"}] * 9
    assert privacy.rejection_reason(elsewhere) == "a text is not a short word"
    failed = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    failed.set_header(REASON, "x" * (MAX_REASON + 1))
    assert privacy.rejection_reason(failed) == "the reason is too long"


def test_a_rejection_is_reported_to_the_server_and_in_the_sites_audit_log(
    privacy: PrivacyFilter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditService, "the_auditor", Auditor(str(tmp_path / "audit.txt")))
    reply = privacy.process(_update(image=_IMAGE), _context())
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert str(reply.get_header(REASON)).startswith("site site-1: the site's privacy filter blocks this result: ")
    assert not [key for key in reply if key != "__headers__"]
    assert f"[A:{ACTION}]" in (tmp_path / "audit.txt").read_text()
    assert privacy.rejection_reason(reply) is None


@pytest.mark.parametrize("tensors", [{"a": "8"}, {"a": 0}, ["a"]])
def test_an_invalid_allow_list_is_an_error(tensors: Any) -> None:
    with pytest.raises(ValueError, match="positive numbers of bytes"):
        PrivacyFilter(tensors, 1, 1)
