"""Live curves: a site streams the metrics of each round to the server's TensorBoard or MLflow.

NVFLARE's analytics events carry them to receivers at the server, which the job names by path. Filters of task results
do not see these events. So the events hold only numbers of the site's report of the round, after small-cell
suppression (`fedfms.training.disclosure`), under tags made of words of the study. For the same reason `Curves` sends
them and not NVFLARE's `ConvertToFedEvent`: there, the job chooses which events leave, and a site's errors, which hold
its paths, are events too.
"""

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
EVENTS = "tb_events"  # TensorBoard's folder in the run's folder at the server; one subfolder per site
_EVENT = f"fed.{ANALYTIC_EVENT_TYPE}"  # at the server
_PARTS = {"val": "validation", "test": "test", "all": "held-out"}
_SUFFIXES = {"standard": "", "fedfms": "_fedfms", "volume": "_volume"}  # of a metric's name, by mode


class Curves(FLComponent):
    """Sends the tag, value and step of local analytics events with a numeric value to the server, and nothing else.

    It has no arguments: a job must not choose what leaves a site.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Send the number of an analytics event."""
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        local = fl_ctx.get_prop(FLContextKey.EVENT_SCOPE, EventScope.LOCAL) == EventScope.LOCAL
        if event_type != ANALYTIC_EVENT_TYPE or not local or not isinstance(data, Shareable):
            return
        found = AnalyticsData.from_dxo(from_shareable(data))
        tag = str(found.tag)
        if not isinstance(found.value, int | float) or len(tag) > _MAX_TAG or not tag.isprintable():
            self.log_error(fl_ctx, "fedfms: not sent: only a number under a short tag may leave", fire_event=False)
            return
        dxo = create_analytic_dxo(tag, float(found.value), AnalyticsDataType.SCALAR, global_step=found.step)
        self.fire_fed_event(_EVENT, dxo.to_shareable(), fl_ctx)


def numbers(report: Mapping[str, Any], part: str) -> dict[str, float]:
    """The numbers of a round's report to stream, by tag: `train/loss`, `validation/dice/<structure>`, `bytes/up`, ...

    Args:
        report: the report as it leaves the site.
        part: "val", "test" or "all": the images that were scored.
    """
    found = {
        "train/loss": report.get("train_loss"),
        "bytes/up": report.get("bytes_up"),
        "bytes/down": report.get("bytes_down"),
        "seconds/round": report.get("seconds"),
    }
    if report["scores"]:
        found |= _scores(report["scores"], _PARTS[part])
    return {tag: value for tag, value in found.items() if value is not None}


def _scores(scores: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float | None]]:
    yield f"{prefix}/dice", scores["dice"]
    for mode, suffix in _SUFFIXES.items():
        for structure, row in scores.get(mode, {}).items():
            for metric in ("dice", "iou"):
                yield f"{prefix}/{metric}{suffix}/{structure}", row[metric]


def stream(component: FLComponent, found: Mapping[str, float], round_: int, fl_ctx: FLContext) -> None:
    """Fire an analytics event for each number (by tag) of a round."""
    with fl_ctx.get_engine().new_context() as context:
        for tag, value in found.items():
            dxo = create_analytic_dxo(tag, value, AnalyticsDataType.SCALAR, global_step=round_)
            send_analytic_dxo(component, dxo, context)


def sender(study: Study) -> list[dict[str, Any]]:
    """The job's tracking components at a site."""
    if study.federation.tracking == "none":
        return []
    return [{"id": "tracking", "path": f"{__name__}.{Curves.__name__}", "args": {}}]


def receiver(study: Study) -> list[dict[str, Any]]:
    """The job's tracking components at the server.

    Raises:
        StudyError: the study uses MLflow, which is not installed.
    """
    if study.federation.tracking == "none":
        return []
    if study.federation.tracking == "tensorboard":
        path, args = "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver", {"tb_folder": EVENTS}
        return [{"id": "tracking", "path": path, "args": args | {"events": [_EVENT]}}]
    if importlib.util.find_spec("mlflow") is None:
        raise StudyError(
            "federation.tracking is 'mlflow', and MLflow is not installed", where=study.name,
            do="install fedfms[mlflow] here and at the server, or set it to tensorboard",
        )  # fmt: skip
    names = {"experiment_name": study.name, "run_name": study.method, "experiment_tags": {}, "run_tags": {}}
    path = "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"
    return [{"id": "tracking", "path": path, "args": {"kw_args": names, "events": [_EVENT]}}]
