"""A site's replies to an abort, a full disk, too little memory and unreadable images."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.apis.signal import Signal

from fedfms.federation.rows import report_columns
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import REASON, REPORT, TRAIN, VALIDATE
from fedfms.study import load_study
from fedfms.training.state import StateStore
from tests.data.make import STRUCTURES, make_site
from tests.disk import NO_ROOM, SmallDisk
from tests.flare.make import do, task_of
from tests.flare.test_executor import PHANTOM, SMALL

STUDY = load_study(PHANTOM, overrides=[*SMALL, "train.batch_size=1"])


def _stopped_in(task: str, batch: int, executor: SiteExecutor, context: FLContext) -> tuple[str, int]:
    """The reply to a task that is aborted in batch number `batch` (from 1), and the number of batches computed."""
    signal, done = Signal(), 0
    model = executor._open(context).built.model
    real = type(model).from_prefix

    def counting(features: torch.Tensor) -> Any:
        nonlocal done
        done += 1
        if done == batch:
            signal.trigger("stop")
        return real(model, features)

    model.from_prefix = counting  # type: ignore[method-assign]
    reply = executor.execute(task, task_of(STUDY), context, signal)
    del model.from_prefix
    return str(reply.get_return_code()), done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "held_out", "batch"),
    [(TRAIN, "[]", 1), (TRAIN, "[]", 4), (VALIDATE, "[]", 1), (VALIDATE, "[]", 3), (TRAIN, "[a]", 2)],
    ids=["scoring in a round", "training", "scoring a final model", "drawing its overlays", "held-out scoring"],
)
def test_abort_is_honoured_within_one_batch(
    task: str, held_out: str, batch: int, context: FLContext, tmp_path: Path
) -> None:
    """An aborted task stores nothing: the next task gives what a site that was never stopped gives."""
    study = load_study(PHANTOM, overrides=[*SMALL, "train.batch_size=1", f"held_out={held_out}"])
    executor = SiteExecutor(study.to_dict())
    assert _stopped_in(task, batch, executor, context) == (ReturnCode.TASK_ABORTED, batch)
    assert StateStore(tmp_path / "run" / "fedfms" / "state").load() is None
    again = from_shareable(do(executor, task, task_of(STUDY), context))
    fresh = from_shareable(do(SiteExecutor(study.to_dict()), task, task_of(STUDY), context))
    if task == TRAIN and held_out == "[]":
        assert all((again.data[name] == fresh.data[name]).all() for name in fresh.data)
    else:
        assert again.data[REPORT] == fresh.data[REPORT]


def _reason(reply: Shareable) -> str:
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    return str(reply.get_header(REASON))


def test_a_full_disk_is_answered_with_the_reason_and_no_path(context: FLContext, disk: SmallDisk) -> None:
    context.get_workspace().get_run_dir = lambda _: str(disk.folder / "run")
    executor, task = SiteExecutor(STUDY.to_dict()), task_of(STUDY)
    executor._open(context)
    disk.fill()
    reason = _reason(do(executor, TRAIN, task, context))
    disk.free()
    assert re.match(f"site a, round 0: the state after round 0 cannot be written {NO_ROOM}; make room", reason)
    assert str(disk.folder) not in reason
    assert do(executor, TRAIN, task_of(STUDY), context).get_return_code() == ReturnCode.OK


def test_out_of_memory_with_one_slice_is_answered_and_the_site_continues(context: FLContext) -> None:
    executor = SiteExecutor(STUDY.to_dict())
    model = executor._open(context).built.model

    def fail(_: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.from_prefix = fail  # type: ignore[method-assign]
    reason = _reason(do(executor, TRAIN, task_of(STUDY), context))
    assert reason.startswith("site a, round 0: out of memory with a micro-batch of one slice")
    del model.from_prefix
    assert do(executor, TRAIN, task_of(STUDY), context).get_return_code() == ReturnCode.OK


def test_unreadable_images_are_counted_in_the_rounds_row_and_never_named(
    context: FLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_site(tmp_path / "data", n=6)
    (tmp_path / "site.yaml").write_text(f"data_root: {tmp_path / 'data'}\n")
    monkeypatch.setenv("FEDFMS_SITE", str(tmp_path / "site.yaml"))
    for image in sorted((tmp_path / "data" / "eyes" / "a" / "images").iterdir())[:2]:
        image.write_bytes(image.read_bytes()[:-40])
    for limit in (2, 1):
        values = {"data.dataset": "eyes", "data.structures": STRUCTURES, "data.max_unreadable_images": limit}
        study = load_study(PHANTOM, overrides=SMALL, **values)
        reply = do(SiteExecutor(study.to_dict()), TRAIN, task_of(STUDY), context)
        if limit == 2:
            report = from_shareable(reply).get_meta_prop(REPORT)
            assert report_columns(report)["unreadable_images"] == 2
            assert "case" not in str({key: report[key] for key in report if key != "scores"})
        else:
            assert _reason(reply).startswith(
                "site a, round 0: 2 images are damaged or missing, data.max_unreadable_images"
            )
