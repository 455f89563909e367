"""Live curves: what a site tells of a round goes to the server's TensorBoard or MLflow as soon as it is known.

By NVFLARE's own analytics events and receivers at the server, which the job names by path. Filters of task results do
not see these events: that is why they hold nothing but numbers of the site's report of the round, as far as they may
leave it (`fedfms.training.disclosure`), under tags made of words of the study; and why `Curves` sends them, not NVFLARE's
`ConvertToFedEvent`, which takes from the job which events leave: a site's errors, with its paths, are events too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsData, AnalyticsDataType
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo

from fedfms.errors import StudyError
from fedfms.study import Study

_MAX_TAG = 200  # characters
EVENTS = "tb_events"  # folder of TensorBoard's files in the run's own at the server, one in it a site
_EVENT = f"fed.{ANALYTIC_EVENT_TYPE}"  # at the server
_PARTS = {"val": "validation", "test": "test", "all": "held-out"}
_KINDS = {"standard": "", "fedfms": "_fedfms", "volume": "_volume"}  # modes, behind the name of the metric


class Curves(FLComponent):
    """Sends the numbers of analytics events to the server: no other event, and of these tag, value and step alone.

    It has no arguments: what leaves a site is not for a job to choose.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Pass a number on."""
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        local = fl_ctx.get_prop(FLContextKey.EVENT_SCOPE, EventScope.LOCAL) == EventScope.LOCAL
        if event_type != ANALYTIC_EVENT_TYPE or not local or not isinstance(data, Shareable):
            return
        found = AnalyticsData.from_dxo(from_shareable(data))
        tag = str(found.tag)
        if not isinstance(found.value, int | float) or len(tag) > _MAX_TAG or not tag.isprintable():
            self.log_error(fl_ctx, "fedfms: what is no number under a short tag is not sent", fire_event=False)
            return
        own = create_analytic_dxo(tag, float(found.value), AnalyticsDataType.SCALAR, global_step=found.step)
        self.fire_fed_event(_EVENT, own.to_shareable(), fl_ctx)


def numbers(report: Mapping[str, Any], part: str) -> dict[str, float]:
    """What of a round's report is streamed, by tag: `train/loss`, `validation/dice/<structure>`, `bytes/up`, ...

    Args:
        report: as it leaves the site.
        part: "val", "test" or "all": the images that the scores are of.
    """
    plain = {
        "train/loss": report.get("train_loss"),
        "bytes/up": report.get("bytes_up"),
        "bytes/down": report.get("bytes_down"),
        "seconds/round": report.get("seconds"),
    }
    found = plain | dict(_scores(report["scores"], _PARTS[part])) if report["scores"] else plain
    return {tag: value for tag, value in found.items() if value is not None}


def _scores(scores: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float | None]]:
    yield f"{prefix}/dice", scores["dice"]
    for mode, kind in _KINDS.items():
        for structure, row in scores.get(mode, {}).items():
            for metric in ("dice", "iou"):
                yield f"{prefix}/{metric}{kind}/{structure}", row[metric]


def stream(component: FLComponent, found: Mapping[str, float], round_: int, fl_ctx: FLContext) -> None:
    """Send numbers by tag, as of a round, to whoever listens at the server."""
    with fl_ctx.get_engine().new_context() as own:
        for tag, value in found.items():
            dxo = create_analytic_dxo(tag, value, AnalyticsDataType.SCALAR, global_step=round_)
            send_analytic_dxo(component, dxo, own)


def sender(study: Study) -> list[dict[str, Any]]:
    """The job's components at a site."""
    if study.federation.tracking == "none":
        return []
    return [{"id": "tracking", "path": f"{__name__}.{Curves.__name__}", "args": {}}]


def receiver(study: Study) -> list[dict[str, Any]]:
    """The job's components at the server.

    Raises:
        StudyError: the study wants MLflow, which is not installed.
    """
    if study.federation.tracking == "none":
        return []
    events = [_EVENT]
    if study.federation.tracking == "tensorboard":
        path, args = "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver", {"tb_folder": EVENTS}
        return [{"id": "tracking", "path": path, "args": args | {"events": events}}]
    if importlib.util.find_spec("mlflow") is None:
        raise StudyError(
            "federation.tracking is 'mlflow', and MLflow is not installed", where=study.name,
            do="install fedfms[mlflow] here and at the server, or leave it at tensorboard",
        )  # fmt: skip
    names = {"experiment_name": study.name, "run_name": study.method, "experiment_tags": {}, "run_tags": {}}
    path = "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"
    return [{"id": "tracking", "path": path, "args": {"kw_args": names, "events": events}}]
