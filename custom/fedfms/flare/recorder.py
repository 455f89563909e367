"""A run's records at the server: a row per round and site, the final scores, and the report."""

import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nvflare
import torch
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

import fedfms
from fedfms.errors import FedfmsError
from fedfms.federation.rows import to_json
from fedfms.files import append_line, write_atomic
from fedfms.flare.aggregator import RoundServerAggregator
from fedfms.flare.messages import REPORT, model_name
from fedfms.flare.persistor import SharedModelPersistor
from fedfms.flare.progress import ENDED_FILE, STATS_REQUESTED, Progress
from fedfms.flare.resume import run_folder
from fedfms.machine import version_of
from fedfms.reporting import make_report, render_text
from fedfms.reporting.records import clean_reason


class Recorder(FLComponent):
    """Writes `fedfms/run.json`, `rounds.jsonl` and `final.json` at the server, and the report at the end.

    It also answers requests for the job's statistics with the progress of the rounds.
    """

    def __init__(self, persistor_id: str = "persistor", aggregator_id: str = "aggregator") -> None:
        super().__init__()
        self._persistor_id = persistor_id
        self._aggregator_id = aggregator_id
        self._written: set[int] = set()  # rounds
        self._final: dict[str, Any] = {}
        self._rounds_done = 0
        self._best_round = 0
        self._progress = Progress()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Record NVFLARE's events."""
        handlers = {
            AppEventType.INITIAL_MODEL_LOADED: self._start,
            AppEventType.AFTER_AGGREGATION: self._write_round,
            AppEventType.GLOBAL_BEST_MODEL_AVAILABLE: self._note_best,
            AppEventType.VALIDATION_RESULT_RECEIVED: self._note_final,
            EventType.FATAL_SYSTEM_ERROR: self._note_end,
            EventType.END_RUN: self._report,
            STATS_REQUESTED: self._progress.add_to_stats,
        }
        if event_type in handlers:
            handlers[event_type](fl_ctx)

    def _folder(self, fl_ctx: FLContext) -> Path:
        folder = run_folder(fl_ctx.get_workspace(), fl_ctx.get_job_id())
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _persistor(self, fl_ctx: FLContext) -> SharedModelPersistor:
        persistor = fl_ctx.get_engine().get_component(self._persistor_id)
        assert isinstance(persistor, SharedModelPersistor)
        return persistor

    def _start(self, fl_ctx: FLContext) -> None:
        persistor = self._persistor(fl_ctx)
        if not persistor.sizes:  # there is no model, and it has reported why; NVFLARE fires this event all the same
            return
        assert persistor.study is not None and persistor.checkpoint is not None
        rounds_done = 0 if persistor.saved is None else persistor.saved.server.round
        self._resume(persistor, rounds_done, self._folder(fl_ctx))
        run = {
            "format": 1,
            "study": persistor.study.to_dict(),
            "versions": {
                "fedfms": fedfms.__version__,
                "nvflare": nvflare.__version__,
                "torch": torch.__version__,
                "monai": version_of("monai"),
                "python": platform.python_version(),
            },
            "parameters": persistor.sizes,
            "model": persistor.pixels,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        run |= {"resumed": persistor.checkpoint.resumed} if persistor.checkpoint.resumed else {}
        write_atomic(self._folder(fl_ctx) / "run.json", json.dumps(run, indent=2))
        self._progress.start(persistor.study)

    def _resume(self, persistor: SharedModelPersistor, round_: int, folder: Path) -> None:
        """Begin with the records of the earlier job's completed rounds, without those of a round that failed."""
        checkpoint = persistor.checkpoint
        assert checkpoint is not None
        for name, lines in (("rounds.jsonl", checkpoint.rounds), ("mixing.jsonl", checkpoint.mixing)):
            if lines:
                write_atomic(folder / name, "".join(f"{line}\n" for line in lines))
            else:
                (folder / name).unlink(missing_ok=True)
        (folder / "final.json").unlink(missing_ok=True)
        self._rounds_done = round_
        self._best_round = 0 if persistor.best is None else persistor.best.round

    def _note_best(self, fl_ctx: FLContext) -> None:
        # It is the model that the sites received in this round, after that many rounds.
        self._best_round = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND))

    def _write_round(self, fl_ctx: FLContext) -> None:
        self._write_rows(fl_ctx)
        round_, state = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND)), self._aggregator(fl_ctx).server(fl_ctx).state
        mixing = state.notes.get("W")
        if mixing and state.round > round_:  # NVFLARE fires this event after an aggregation that failed, too
            append_line(self._folder(fl_ctx) / "mixing.jsonl", to_json({"round": round_, "W": mixing}))
        self._rounds_done = round_ + 1

    def _write_rows(self, fl_ctx: FLContext, *, aggregated: bool = True) -> None:
        aggregator = self._aggregator(fl_ctx)
        path = self._folder(fl_ctx) / "rounds.jsonl"
        new = [
            row for _, row in sorted(aggregator.rows.items())
            if row["round"] not in self._written and (aggregated or not row["accepted"])
        ]  # fmt: skip
        for row in new:
            append_line(path, to_json(row))
        self._progress.add(new)
        self._written |= {row["round"] for row in aggregator.rows.values()}

    def _aggregator(self, fl_ctx: FLContext) -> RoundServerAggregator:
        aggregator = fl_ctx.get_engine().get_component(self._aggregator_id)
        assert isinstance(aggregator, RoundServerAggregator)
        return aggregator

    def _note_final(self, fl_ctx: FLContext) -> None:
        result = fl_ctx.get_prop(AppConstants.VALIDATION_RESULT)
        site = str(fl_ctx.get_prop(AppConstants.DATA_CLIENT))
        name = model_name(str(fl_ctx.get_prop(AppConstants.MODEL_OWNER)))
        if not isinstance(result, Shareable) or result.get_return_code() != ReturnCode.OK:
            return
        dxo = from_shareable(result)
        if dxo.data_kind != DataKind.METRICS or REPORT not in dxo.data:
            return
        round_ = self._best_round if name == "best" else self._rounds_done
        model = self._final.setdefault(name, {"round": round_, "sites": {}})
        report = dxo.data[REPORT]
        each = report.get("by_site") if isinstance(report, dict) else None
        model["sites"] |= each if isinstance(each, dict) else {site: report}  # pooled data have scores by site
        write_atomic(self._folder(fl_ctx) / "final.json", to_json({"models": self._final}, indent=2))

    def _note_end(self, fl_ctx: FLContext) -> None:
        """Record why the server ends the run; NVFLARE itself only reports a failure."""
        reason = clean_reason(fl_ctx.get_prop(FLContextKey.EVENT_DATA))
        write_atomic(self._folder(fl_ctx).parent / ENDED_FILE, to_json({"reason": reason}))

    def _report(self, fl_ctx: FLContext) -> None:
        folder = self._folder(fl_ctx)
        if (folder / "run.json").is_file():
            self._write_rows(fl_ctx, aggregated=False)  # why a round was never aggregated
        elif not (folder.parent / ENDED_FILE).is_file():
            return
        try:
            report = make_report(folder.parent)
        except FedfmsError as error:
            self.log_error(fl_ctx, f"fedfms: no report: {error.line()}", fire_event=False)
            return
        self.log_info(fl_ctx, f"fedfms: report in {folder / 'report'}\n{render_text(report)}", fire_event=False)
        checkpoint = self._persistor(fl_ctx).checkpoint
        if report.results["complete"] and checkpoint is not None:
            checkpoint.remove()
