"""The executor on real shareables, without a federation: its replies, and what its error log may hold."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsData, AnalyticsDataType
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.app_common.app_constant import AppConstants

from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import REASON, REPORT, SUBMIT_MODEL, TRAIN, VAL_DICE, VALIDATE
from fedfms.settings import FILE_NAME
from fedfms.study import STUDIES, load_study
from fedfms.training.site import Site
from tests.flare.make import do, task_of

PHANTOM = STUDIES / "phantom.yaml"
SMALL = [
    "data.phantom_images=6", "train.rounds=1", "train.local_epochs=1", "model.input_px=32", "federation.min_cases=1",
]  # fmt: skip
STUDY = load_study(PHANTOM, overrides=SMALL)


def _streamed(context: FLContext) -> dict[str, tuple[int, float]]:
    """Round and value, by tag, of the live curves that were sent."""
    engine = context.get_engine()
    assert {kind for kind, _ in engine.streamed} <= {ANALYTIC_EVENT_TYPE}
    sent = [AnalyticsData.from_dxo(from_shareable(data)) for _, data in engine.streamed]
    assert {data.data_type for data in sent} <= {AnalyticsDataType.SCALAR}
    return {data.tag: (data.step, data.value) for data in sent}


def test_the_three_tasks_and_an_unknown_one(context: FLContext) -> None:
    executor = SiteExecutor(STUDY.to_dict())
    trained = from_shareable(do(executor, TRAIN, task_of(STUDY), context))
    assert trained.data_kind == DataKind.WEIGHTS
    assert set(trained.get_meta_prop(REPORT)) == {"scores", "train_loss", "seconds", "bytes_down", "unreadable_images"}
    scored = from_shareable(do(executor, VALIDATE, task_of(STUDY), context))
    assert scored.data[REPORT]["part"] == "val"
    submitted = from_shareable(do(executor, SUBMIT_MODEL, Shareable(), context))
    assert set(submitted.data) == set(trained.data)
    assert do(executor, "dance", Shareable(), context).get_return_code() == ReturnCode.TASK_UNKNOWN


def test_suppressed_scores_do_not_select_a_model(context: FLContext) -> None:
    """A score of two images does not leave the site under the selector's key either."""
    sent = from_shareable(do(SiteExecutor(STUDY.to_dict()), TRAIN, task_of(STUDY), context))
    assert sent.get_meta_prop(MetaKey.INITIAL_METRICS) == {VAL_DICE: sent.get_meta_prop(REPORT)["scores"]["dice"]}
    suppressed = from_shareable(do(_with(min_cases=3), TRAIN, task_of(STUDY), context))
    assert suppressed.get_meta_prop(MetaKey.INITIAL_METRICS) is None
    assert suppressed.get_meta_prop(REPORT)["scores"]["dice"] is None


def _with(**federation: object) -> SiteExecutor:
    return SiteExecutor(replace(STUDY, federation=replace(STUDY.federation, **federation)).to_dict())


def test_the_numbers_of_a_round_are_sent_as_live_curves(context: FLContext) -> None:
    task = task_of(STUDY)
    task.set_header(AppConstants.CURRENT_ROUND, 3)
    report = from_shareable(do(SiteExecutor(STUDY.to_dict()), TRAIN, task, context)).get_meta_prop(REPORT)
    found = _streamed(context)
    assert {step for step, _ in found.values()} == {3}
    assert set(found) == {
        "train/loss", "bytes/up", "bytes/down", "seconds/round", "validation/dice",
        *(f"validation/{metric}{kind}/{structure}" for metric in ("dice", "iou") for kind in ("", "_fedfms")
          for structure in ("disc", "cup")),
    }  # fmt: skip
    assert found["train/loss"][1] == report["train_loss"]
    assert found["validation/iou/cup"][1] == report["scores"]["standard"]["cup"]["iou"]
    assert found["bytes/down"][1] == report["bytes_down"] == found["bytes/up"][1]


def test_suppressed_scores_are_not_sent_as_live_curves(context: FLContext) -> None:
    do(_with(min_cases=5), TRAIN, task_of(STUDY), context)  # four images train, two validate
    assert set(_streamed(context)) == {"bytes/up", "bytes/down", "seconds/round"}


def test_a_study_without_live_curves_sends_nothing(context: FLContext) -> None:
    do(_with(tracking="none"), TRAIN, task_of(STUDY), context)
    assert not context.get_engine().streamed


def test_a_sites_own_setting_turns_live_curves_off(context: FLContext) -> None:
    settings = Path(context.get_workspace().get_root_dir()) / "local" / FILE_NAME
    settings.parent.mkdir()
    settings.write_text("live_metrics: false\n")
    reply = do(SiteExecutor(STUDY.to_dict()), TRAIN, task_of(STUDY), context)
    assert reply.get_return_code() == ReturnCode.OK
    assert not context.get_engine().streamed


def test_an_abort_is_answered_as_aborted(context: FLContext) -> None:
    reply = do(SiteExecutor(STUDY.to_dict()), TRAIN, task_of(STUDY), context, stop=True)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED


@pytest.mark.parametrize(
    ("shareable", "reason"),
    [
        (Shareable(), "site a: the task has no model"),
        (DXO(DataKind.METRICS, data={"x": 1}).to_shareable(), "the task has METRICS, not weights"),
        (DXO(DataKind.WEIGHTS, data={}).to_shareable(), "are not those of this study"),
    ],
    ids=["nothing", "metrics", "a model without tensors"],
)
def test_an_invalid_task_is_answered_with_the_reason(shareable: Shareable, reason: str, context: FLContext) -> None:
    reply = do(SiteExecutor(STUDY.to_dict()), TRAIN, shareable, context)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reason in reply.get_header(REASON)


def test_an_unexpected_error_is_answered_with_its_class_and_no_path(
    context: FLContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/data/StMary/smith.png")

    monkeypatch.setattr(Site, "train_round", fail)
    with caplog.at_level(logging.INFO):
        reply = do(SiteExecutor(STUDY.to_dict()), TRAIN, task_of(STUDY), context)
    assert reply.get_header(REASON) == "site a: an unexpected OSError; its cause is in the site's log.txt"
    streamed = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert streamed
    assert not any("smith" in message or "Traceback" in message for message in streamed)
    assert any("smith" in record.getMessage() for record in caplog.records)  # in the site's own log
