"""The executor on real shareables, without a federation: what it answers, and what an error log may hold."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.apis.signal import Signal

from fedfms.flare.executor import SiteExecutor
from fedfms.flare.wire import REASON, REPORT, SUBMIT_MODEL, TRAIN, VAL_DICE, VALIDATE, to_arrays
from fedfms.settings import SiteSettings
from fedfms.study import load_study
from fedfms.training.build import build
from fedfms.training.site import Site

PHANTOM = Path(__file__).parents[2] / "jobs" / "studies" / "phantom.yaml"
SMALL = [
    "data.phantom_images=6", "train.rounds=1", "train.local_epochs=1", "model.input_px=32", "federation.min_cases=1",
]  # fmt: skip
STUDY = load_study(PHANTOM, overrides=SMALL)


@pytest.fixture
def context(tmp_path: Path) -> FLContext:
    workspace = SimpleNamespace(get_root_dir=lambda: str(tmp_path), get_run_dir=lambda _: str(tmp_path / "run"))
    context = FLContext()
    context.put(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=True)
    context.get_workspace = lambda: workspace
    context.get_job_id = lambda: "job"
    return context


def _task() -> Shareable:
    shared = build(STUDY, SiteSettings()).shared()
    shareable: Shareable = DXO(DataKind.WEIGHTS, data=to_arrays(shared)).to_shareable()
    return shareable


def _do(
    executor: SiteExecutor, task: str, shareable: Shareable, context: FLContext, *, stop: bool = False
) -> Shareable:
    signal = Signal()
    if stop:
        signal.trigger("stop")
    return executor.execute(task, shareable, context, signal)


def test_the_three_tasks_and_an_unknown_one(context: FLContext) -> None:
    executor = SiteExecutor(STUDY.to_dict())
    trained = from_shareable(_do(executor, TRAIN, _task(), context))
    assert trained.data_kind == DataKind.WEIGHTS
    assert set(trained.get_meta_prop(REPORT)) == {"scores", "train_loss", "seconds", "bytes_down"}
    scored = from_shareable(_do(executor, VALIDATE, _task(), context))
    assert scored.data[REPORT]["part"] == "val"
    submitted = from_shareable(_do(executor, SUBMIT_MODEL, Shareable(), context))
    assert set(submitted.data) == set(trained.data)
    assert _do(executor, "dance", Shareable(), context).get_return_code() == ReturnCode.TASK_UNKNOWN


def test_what_is_withheld_chooses_no_model(context: FLContext) -> None:
    """By the selector's key too, no score of two images leaves."""
    told = from_shareable(_do(SiteExecutor(STUDY.to_dict()), TRAIN, _task(), context))
    assert told.get_meta_prop(MetaKey.INITIAL_METRICS) == {VAL_DICE: told.get_meta_prop(REPORT)["scores"]["dice"]}
    strict = replace(STUDY, federation=replace(STUDY.federation, min_cases=3))
    kept = from_shareable(_do(SiteExecutor(strict.to_dict()), TRAIN, _task(), context))
    assert kept.get_meta_prop(MetaKey.INITIAL_METRICS) is None
    assert kept.get_meta_prop(REPORT)["scores"]["dice"] is None


def test_a_stop_is_answered_as_aborted(context: FLContext) -> None:
    reply = _do(SiteExecutor(STUDY.to_dict()), TRAIN, _task(), context, stop=True)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED


@pytest.mark.parametrize(
    ("shareable", "says"),
    [
        (Shareable(), "site a: the task came without a model"),
        (DXO(DataKind.METRICS, data={"x": 1}).to_shareable(), "the task came with METRICS"),
        (DXO(DataKind.WEIGHTS, data={}).to_shareable(), "are not those of this study"),
    ],
    ids=["nothing", "metrics", "a model with no tensors"],
)
def test_a_task_that_cannot_be_done_is_answered_with_the_reason(
    shareable: Shareable, says: str, context: FLContext
) -> None:
    reply = _do(SiteExecutor(STUDY.to_dict()), TRAIN, shareable, context)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert says in reply.get_header(REASON)


def test_an_unexpected_fault_tells_its_kind_and_no_path(
    context: FLContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def burst(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/data/StMary/smith.png")

    monkeypatch.setattr(Site, "train_round", burst)
    with caplog.at_level(logging.INFO):
        reply = _do(SiteExecutor(STUDY.to_dict()), TRAIN, _task(), context)
    assert reply.get_header(REASON) == "site a: an unexpected OSError; its cause is in the site's log.txt"
    streamed = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert streamed
    assert not any("smith" in message or "Traceback" in message for message in streamed)
    assert any("smith" in record.getMessage() for record in caplog.records)  # at the site, to look it up
