"""When the parts of a round begin and end, for whoever measures them: no job has this that does not ask for it."""

from __future__ import annotations

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

FILE = "clock.jsonl"  # in the folder `fedfms` of the run's own, at the server and at each site
LOADED = "fedfms_loaded_s"  # context of a task at a site: seconds of its data and model, of the executor's

# What NVFLARE tells a server's components, and a site's.
_EVENTS = {
    AppEventType.ROUND_STARTED: "round", AppEventType.ROUND_DONE: "round done",
    AppEventType.BEFORE_AGGREGATION: "aggregate", AppEventType.AFTER_AGGREGATION: "aggregate done",
    AppEventType.BEFORE_LEARNABLE_PERSIST: "save", AppEventType.AFTER_LEARNABLE_PERSIST: "save done",
    EventType.BEFORE_PULL_TASK: "receive", EventType.AFTER_PULL_TASK: "receive done",
    EventType.BEFORE_TASK_EXECUTION: "work", EventType.AFTER_TASK_EXECUTION: "work done",
    EventType.BEFORE_SEND_TASK_RESULT: "send", EventType.AFTER_SEND_TASK_RESULT: "send done",
}  # fmt: skip


class Clock(FLComponent):
    """A line an event: {"at": s since 1970, "event", "task", "loaded_s"}; null where there is none."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write it down."""
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
