"""Record when the phases of a round start and end, for benchmarks; a job has this component only on request."""

import json
import time
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_event_type import AppEventType

from fedfms.files import append_line
from fedfms.flare.resume import run_folder

FILE = "clock.jsonl"  # in the run's `fedfms` folder, at the server and at each site
LOADED = "fedfms_loaded_s"  # property of a task's context: seconds that the executor spent on loading data and model

# NVFLARE's events at the server and at a site, and their names in the file.
_EVENTS = {
    AppEventType.ROUND_STARTED: "round", AppEventType.ROUND_DONE: "round done",
    AppEventType.BEFORE_AGGREGATION: "aggregate", AppEventType.AFTER_AGGREGATION: "aggregate done",
    AppEventType.BEFORE_LEARNABLE_PERSIST: "save", AppEventType.AFTER_LEARNABLE_PERSIST: "save done",
    EventType.BEFORE_PULL_TASK: "receive", EventType.AFTER_PULL_TASK: "receive done",
    EventType.BEFORE_TASK_EXECUTION: "work", EventType.AFTER_TASK_EXECUTION: "work done",
    EventType.BEFORE_SEND_TASK_RESULT: "send", EventType.AFTER_SEND_TASK_RESULT: "send done",
}  # fmt: skip


class Clock(FLComponent):
    """Writes one line for each event: {"at": seconds since 1970, "event", "task", "loaded_s"}; null if unknown."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Append the event to the file."""
        if event_type not in _EVENTS:
            return
        folder = run_folder(fl_ctx.get_workspace(), fl_ctx.get_job_id())
        folder.mkdir(parents=True, exist_ok=True)
        line: dict[str, Any] = {
            "at": time.time(),
            "event": _EVENTS[event_type],
            "task": fl_ctx.get_prop(FLContextKey.TASK_NAME),
            "loaded_s": fl_ctx.get_prop(LOADED),
        }
        append_line(folder / FILE, json.dumps(line))
