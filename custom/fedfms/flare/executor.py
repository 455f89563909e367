"""NVFLARE's executor at a site: the tasks train, validate and submit_model."""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fedfms import plugins
from fedfms.compression import CODECS
from fedfms.errors import FedfmsError, TrainingError, UpdateError
from fedfms.federation.update_schema import Schema
from fedfms.flare.messages import (
    HELD_DIGEST,
    REJECTION,
    REPORT,
    SAMPLES,
    SUBMIT_MODEL,
    TRAIN,
    VALIDATE,
    download_of,
    error_reply,
    job_of,
    kind_of,
    model_name,
    nbytes,
    public_line,
    to_arrays,
    to_tensors,
    update_dxo,
)
from fedfms.flare.resume import adopt_site_state, job_ids, run_folder
from fedfms.flare.threads import share_cores
from fedfms.flare.timing import LOADED
from fedfms.flare.tracking import numbers, stream
from fedfms.settings import load_settings
from fedfms.study import Study
from fedfms.training.disclosure import suppressed_text
from fedfms.training.error_context import error_context
from fedfms.training.site import Site
from fedfms.training.trainer import Aborted


class SiteExecutor(Executor):
    """Trains and scores the study's model on the site's data.

    An error that a person can fix becomes an error reply with one line of text. The controller then decides whether the
    job continues; no error makes it hang.

    Args:
        study: the resolved study (`Study.to_dict()`).
        resume: ids of the jobs that this one resumes, the oldest first.
        plugins: packages that the study's method and backbone come from, {distribution: version}.
    """

    def __init__(
        self, study: dict[str, Any], resume: Sequence[str] = (), plugins: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__()
        self._raw_study, self._resume, self._plugins = study, resume, plugins
        self._site: Site | None = None
        self._abort_signal = Signal()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Before the first task, declare the site's sample count, which limits its updates; with compression also what
        it holds, since the server sends differences to that alone.
        """
        if event_type != EventType.START_RUN:
            return
        try:
            site = self._open(fl_ctx)
            if not site.held_out:
                fl_ctx.set_prop(SAMPLES, site.samples, private=False, sticky=True)
                if _compresses(site):
                    _declare_held(site.held_digest(), fl_ctx)
        except Exception as error:  # noqa: BLE001 - the first task meets it again, and reports it as `execute` does
            text = f"fedfms: the site declares nothing ({type(error).__name__})"
            self.log_info(fl_ctx, text, fire_event=False)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do a task; the reply is a DXO of weights or of metrics, or an error reply."""
        tasks = {TRAIN: self._train, VALIDATE: self._validate, SUBMIT_MODEL: self._submit_model}
        if task_name not in tasks:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        self._abort_signal = abort_signal  # of this task: the site outlives it
        try:
            site = self._open(fl_ctx)
            dxo = tasks[task_name](site, shareable, fl_ctx)
        except Aborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except FedfmsError as fault:
            error = fault.at(f"site {fl_ctx.get_identity_name()}")
            # NVFLARE's kits stream errors from the log to the server: name the case below that level only.
            if public_line(error) != error.line():
                self.log_info(fl_ctx, f"fedfms: {task_name} failed: {error.line()}", fire_event=False)
            self.log_error(fl_ctx, f"fedfms: {public_line(error)}", fire_event=False)
            return error_reply(error)
        except Exception as error:  # noqa: BLE001 - a traceback has the site's paths, and NVFLARE's reply no reason
            self.log_info(fl_ctx, f"fedfms: {task_name} failed\n{traceback.format_exc()}", fire_event=False)
            return self._unexpected(type(error).__name__, fl_ctx)
        reply: Shareable = dxo.to_shareable()
        return reply

    def _unexpected(self, kind: str, fl_ctx: FLContext) -> Shareable:
        where = f"site {fl_ctx.get_identity_name()}"
        error = TrainingError(f"an unexpected {kind}", where=where, do="its cause is in the site's log.txt")
        self.log_error(fl_ctx, f"fedfms: {error.line()}", fire_event=False)
        return error_reply(error)

    def _open(self, fl_ctx: FLContext) -> Site:
        if self._site is None:
            workspace = fl_ctx.get_workspace()
            settings = load_settings(Path(workspace.get_root_dir()))
            plugins.admit(settings.plugins, self._plugins)
            share_cores(settings.threads)
            folder = run_folder(workspace, fl_ctx.get_job_id())
            name = fl_ctx.get_identity_name()
            study = Study.from_dict(self._raw_study)
            ids = job_ids(self._resume)
            with error_context(f"site {name}"):
                found = adopt_site_state(workspace, ids, folder, study)
            if not found and ids and name not in study.held_out:
                text = "this site has no state of the earlier job; its private state starts again"
                self.log_warning(fl_ctx, f"fedfms: {text}", fire_event=False)
            self._site = Site(study, name, settings, folder, stop=lambda: bool(self._abort_signal.triggered))
        return self._site

    def _train(self, site: Site, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        round_ = int(shareable.get_header(AppConstants.CURRENT_ROUND, 0))
        of = site.study.train.rounds
        dxo = _model(shareable, compressed=_compresses(site))
        self._log_rejection(site, dxo, fl_ctx)
        bytes_down = nbytes(dxo.data)
        if site.held_out:
            report = site.evaluate(to_tensors(dxo.data)) | {"bytes_down": bytes_down}
            self._stream(site, report, round_, fl_ctx)
            self.log_info(fl_ctx, f"fedfms: {_line(site, round_, of, report['scores'])} (held out)", fire_event=False)
            return DXO(DataKind.METRICS, data={REPORT: report})
        if _compresses(site):
            _declare_held("", fl_ctx)  # until the round is over: after an error, the site gets the whole model
        result = site.train_round(round_, download_of(dxo) if _compresses(site) else to_tensors(dxo.data))
        self.log_info(
            fl_ctx,
            f"fedfms: {_line(site, round_, of, result.scores)}, training loss {_loss(result.train_loss)} "
            f"on {result.update.samples} slices, {result.seconds:.1f} s, {result.load_s:.1f} s of them loading",
            fire_event=False,
        )
        fl_ctx.set_prop(LOADED, result.load_s, private=True, sticky=False)
        report = {
            "scores": result.scores,
            "train_loss": result.train_loss,
            "seconds": result.seconds,
            "bytes_down": bytes_down,
            "unreadable_images": result.unreadable_images,
        }
        dxo = update_dxo(
            result.payload, samples=result.update.samples, round_=round_, report=report,
            val_dice=result.scores["dice"] if result.scores else None, stamp=_stamp(site, fl_ctx),
        )  # fmt: skip
        if result.payload.base is not None:
            _declare_held(result.payload.base, fl_ctx)
        self._stream(site, report | {"bytes_up": nbytes(dxo.data)}, round_, fl_ctx)
        return dxo

    def _log_rejection(self, site: Site, dxo: DXO, fl_ctx: FLContext) -> None:
        """Log why the server rejected the site's last update, if it did."""
        if rejection := " ".join(str(dxo.get_meta_prop(REJECTION, "")).split()):
            self.log_warning(fl_ctx, f"fedfms: {site.name}: {rejection}", fire_event=False)

    def _stream(self, site: Site, report: dict[str, Any], round_: int, fl_ctx: FLContext) -> None:
        if site.study.federation.tracking != "none" and site.live_metrics:
            stream(self, numbers(report, site.data.scored_part), round_, fl_ctx)

    def _validate(self, site: Site, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        name = model_name(str(shareable.get_header(AppConstants.MODEL_OWNER, "model")))
        dxo = _model(shareable)
        self._log_rejection(site, dxo, fl_ctx)
        report = site.evaluate(to_tensors(dxo.data), overlays=name)
        self.log_info(fl_ctx, f"fedfms: {site.name}, {name} model: {_dice(report['scores'])}", fire_event=False)
        return DXO(DataKind.METRICS, data={REPORT: report})

    def _submit_model(self, site: Site, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        return DXO(DataKind.WEIGHTS, data=to_arrays(site.local_model()))


def _compresses(site: Site) -> bool:
    return site.study.federation.compression != "none"


def _stamp(site: Site, fl_ctx: FLContext) -> dict[str, str]:
    """The update's sender and job, and the schema of the site's own model."""
    codec = CODECS.get(site.study.federation.compression)
    schema = Schema.of_payload(site.built.own(), site.built.partition.shared, codec).hash()
    return {"site": site.name, "job": job_of(fl_ctx), "schema": schema}


def _declare_held(digest: str, fl_ctx: FLContext) -> None:
    """Public, so that it travels with the site's requests; sticky, so that it travels with all of them."""
    fl_ctx.set_prop(HELD_DIGEST, digest, private=False, sticky=True)


def _model(shareable: Shareable, *, compressed: bool = False) -> DXO:
    """The task's weights; with compression also differences."""
    try:
        dxo = from_shareable(shareable)
    except ValueError as error:
        raise UpdateError("the task has no model", do="use this package's own job") from error
    if dxo.data_kind != DataKind.WEIGHTS and not (compressed and dxo.data_kind == DataKind.WEIGHT_DIFF):
        raise UpdateError(f"the task has {kind_of(dxo)}, not weights", do="use this package's own job")
    return dxo


def _line(site: Site, round_: int, of: int, scores: dict[str, Any] | None) -> str:
    return f"{site.name}, round {round_ + 1}/{of}: received model {_dice(scores)}"


def _dice(scores: dict[str, Any] | None) -> str:
    if not scores:
        return "not scored (no image)"
    if scores["dice"] is None:
        return suppressed_text(scores)
    return f"Dice {scores['dice']:.3f} on {scores['images']} images"


def _loss(value: float | None) -> str:
    return "suppressed" if value is None else f"{value:.4f}"
