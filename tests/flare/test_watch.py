"""The output for a running job."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_event_type import AppEventType
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from fedfms.errors import ProvisioningError
from fedfms.flare import watch
from fedfms.flare.nvflare_cli import NvflareError
from fedfms.flare.progress import ENDED_FILE, GROUP, KEY, MAX_ROWS, Progress, SiteRow, Snapshot
from fedfms.flare.recorder import Recorder
from fedfms.flare.watch import COMPLETED, JobWatcher, StillRunningError, round_lines
from tests.reporting.make import make_row, make_scores, make_study

from .fake_nvflare import ID, Fake, error, ok, row, runs, state
from .make import Server

BOTH = [row(0, "site-1"), row(0, "site-2", dice=0.25, seconds=12.0)]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(watch, "_RETRY_S", 0.05)
    return Fake(tmp_path, monkeypatch)


def _watched(fake: Fake, timeout_s: float = 60) -> tuple[str, list[str]]:
    """The job's final status and the printed lines."""
    lines: list[str] = []
    return JobWatcher(fake.kit, ID, lines.append).wait(timeout_s), lines


def test_each_round_is_printed_once_though_it_is_reported_repeatedly(fake: Fake) -> None:
    second = [row(1, "site-1")]
    fake.answers(
        "job monitor",
        [state("SUBMITTED"), state("RUNNING"), runs(*BOTH), runs(*BOTH)],  # then the connection is lost
        [runs(*BOTH, *second), runs(*second), runs(*BOTH, *second), state(COMPLETED)],
    )
    status, lines = _watched(fake)
    assert status == COMPLETED
    assert lines == [
        "the job runs",
        "round 1/3: 2 of 2 sites; val dice 0.375; up 2.0 MB, down 4.0 MB; 12 s",
        "the server does not answer; retrying",
        "round 2/3: 1 of 2 sites; val dice 0.500; up 1.0 MB, down 2.0 MB; 9 s",
        "  site-2 did not answer",
    ]


def test_rounds_are_printed_as_they_end(fake: Fake) -> None:
    """The job does not end before its first round is printed."""
    seen = fake.kit / "seen"
    fake.answers("job monitor", [runs(*BOTH), {"until": str(seen)}, state(COMPLETED)])
    watcher = JobWatcher(fake.kit, ID, lambda line: seen.touch() if line.startswith("round 1") else None)
    assert watcher.wait(60) == COMPLETED


def test_a_round_lists_missing_and_rejected_sites() -> None:
    rows = [
        row(0, "a"), row(0, "b", accepted=False, reason="holds NaN", dice=None, bytes_up=0),
        row(0, "far", accepted=False, held_out=True, reason="held out", dice=0.125, bytes_up=0),
    ]  # fmt: skip
    plan = Snapshot(2, ("a", "b", "z"), ("far", "further"))
    lines = round_lines(0, [SiteRow(**one) for one in rows], plan)
    assert lines == [
        "round 1/2: 1 of 3 sites; val dice 0.500, held out 0.125; up 1.0 MB, down 6.0 MB; 9 s",
        "  b rejected: holds NaN", "  further did not answer", "  z did not answer",
    ]  # fmt: skip
    assert round_lines(0, [], Snapshot()) == ["round 1: 0 of 0 sites; val dice -; up 0.0 MB, down 0.0 MB; 0 s"]


def test_sites_that_rejected_the_job_are_printed_when_it_starts(fake: Fake) -> None:
    fake.answers("job meta", ok(job_deploy_detail=["server: OK", "site-2: NVFLARE_ERROR: BYOC not permitted"]))
    fake.answers("job monitor", [state("RUNNING"), state("RUNNING"), state(COMPLETED)])
    assert _watched(fake)[1] == ["the job runs", "  site-2 rejected the job: BYOC not permitted"]
    assert len(fake.calls("job meta")) == 1


def test_what_a_job_waits_for_is_printed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_REASON_S", 0.0)
    fake.answers("job meta", ok(), ok(schedule_history=["2026-11-21 23:45:59: connected sites (1) < min_sites (2)"]))
    fake.answers("job monitor", [state("SUBMITTED")] * 3 + [state("FINISHED:ABORTED")])
    assert _watched(fake) == ("FINISHED:ABORTED", ["the job waits: connected sites (1) < min_sites (2)"])


@pytest.mark.slow
@pytest.mark.parametrize("events", [[{"sleep": 60}], [runs(*BOTH), {"sleep": 60}], [error("CONNECTION_FAILED")]])
def test_watching_stops_at_the_time_limit_whatever_the_server_does(fake: Fake, events: list[Any]) -> None:
    fake.answers("job monitor", events)
    start = time.monotonic()
    with pytest.raises(StillRunningError, match=f"{ID}: it has not ended within the time limit; it still runs"):
        _watched(fake, 2)
    assert 1.9 < time.monotonic() - start < 20


def test_a_timeout_of_nvflare_is_not_an_error(fake: Fake) -> None:
    timeout = {"event": "terminal", "status": "TIMEOUT", "terminal": True, "job_status": "RUNNING"}
    fake.answers("job monitor", [timeout], [state(COMPLETED)])
    assert _watched(fake)[0] == COMPLETED


def test_a_job_that_this_kit_may_not_view_is_an_error_at_once(fake: Fake) -> None:
    fake.answers("job monitor", [error("JOB_NOT_FOUND", "no such job")])
    with pytest.raises(NvflareError, match="no such job"):
        _watched(fake)


@pytest.mark.slow
def test_watching_a_job_that_the_server_has_lost_ends(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOST_S", 0.5)
    silent = [state("RUNNING"), {"sleep": 0.2}]
    fake.answers("job monitor", [runs(*BOTH), *silent, state("RUNNING", metrics={"round": 1}), *silent * 10])
    with pytest.raises(ProvisioningError, match="has sent no progress.*; was the server restarted"):
        _watched(fake)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", None, '{"rows": [{"round": 0, "reason": "password: ***'])
def test_damaged_progress_is_ignored(fake: Fake, text: Any) -> None:
    fake.answers("job monitor", [state("RUNNING", metrics={KEY: text}), state(COMPLETED)])
    assert _watched(fake) == (COMPLETED, ["the job runs"])


def _stats(progress: Progress) -> dict[str, Any]:
    """The answer to NVFLARE's request for statistics."""
    context, collector = FLContext(), GroupInfoCollector()
    context.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector, sticky=False, private=True)
    progress.add_to_stats(context)
    return {} if GROUP not in collector.info else json.loads(collector.info[GROUP][KEY])


def test_the_server_reports_means_only() -> None:
    progress = Progress()
    assert _stats(progress) == {}
    progress.start(make_study())
    assert _stats(progress) == {"planned": 3, "sites": ["a", "b"], "held_out": ["c"], "rows": []}
    words = "no\x1b[2J room\nleft " + "x" * 999
    progress.add([
        make_row(0, "a", make_scores(0.25, 0.75), path="/data/patient-7", images=["case-1"]),
        make_row(0, "b", {"standard": "nonsense"}, reason=words, seconds=float("nan"), train_loss="high"),
    ])  # fmt: skip
    first, second = _stats(progress)["rows"]
    assert first == {
        "round": 0, "site": "a", "accepted": True, "held_out": False, "reason": "", "dice": 0.5, "samples": 36,
        "train_loss": 1.0, "seconds": 2.5, "bytes_up": 1_000_000, "bytes_down": 1_000_000,
    }  # fmt: skip
    assert second["dice"] is second["seconds"] is second["train_loss"] is None
    assert second["reason"].startswith("no [2J room left xxx") and len(second["reason"]) == 300


@pytest.mark.slow
def test_the_progress_of_a_long_run_is_limited_in_size() -> None:
    progress = Progress()
    progress.start(make_study(train={"rounds": 5000}))
    for number in range(5000):
        progress.add([make_row(number, site, None, reason="y" * 500) for site in ("a", "b", "c")])
    rows = _stats(progress)["rows"]
    assert MAX_ROWS - 3 < len(rows) <= MAX_ROWS
    assert rows[0]["round"] == 5000 - len(rows) // 3 and rows[-1]["round"] == 4999
    assert len(json.dumps(_stats(progress))) < 250_000


def test_a_request_with_another_collector_is_not_answered() -> None:
    progress = Progress()
    progress.start(make_study())
    context = FLContext()
    context.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, SimpleNamespace(add_info=None), sticky=False, private=True)
    progress.add_to_stats(context)


def test_the_recorder_reports_rounds_when_aggregated_and_stores_why_the_server_ended(tmp_path: Path) -> None:
    server = Server()
    context, recorder = server.context, Recorder()
    context.get_workspace = lambda: SimpleNamespace(get_run_dir=lambda _: str(tmp_path))
    context.get_engine = lambda: SimpleNamespace(
        get_component=lambda name: {"persistor": server.persistor, "aggregator": server.aggregator}[name]
    )
    recorder.handle_event(AppEventType.INITIAL_MODEL_LOADED, context)
    server.round_server.rows.update(b=make_row(3, "b", None), a=make_row(3, "a", None))
    collector = GroupInfoCollector()
    context.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector, sticky=False, private=True)
    recorder.handle_event(AppEventType.AFTER_AGGREGATION, context)
    recorder.handle_event(InfoCollector.EVENT_TYPE_GET_STATS, context)
    rows = json.loads(collector.info[GROUP][KEY])["rows"]
    assert [(one["round"], one["site"]) for one in rows] == [(3, "a"), (3, "b")]
    context.set_prop(FLContextKey.EVENT_DATA, "round 4: 0 updates accepted,\n1 needed", sticky=False, private=True)
    recorder.handle_event(EventType.FATAL_SYSTEM_ERROR, context)
    assert json.loads((tmp_path / ENDED_FILE).read_text()) == {"reason": "round 4: 0 updates accepted, 1 needed"}
