"""The server's model: NVFLARE's PyTorch persistor over the shared tensors, with a resume checkpoint."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor

from fedfms import plugins
from fedfms.errors import FedfmsError, TrainingError
from fedfms.federation.rows import to_json
from fedfms.federation.state import Saved
from fedfms.federation.update_schema import Schema
from fedfms.flare.array_limit import limit_arrays
from fedfms.flare.messages import to_tensors
from fedfms.flare.resume import (
    ADVICE,
    BEST,
    Best,
    ResumeCheckpoint,
    checkpoint_folder,
    checkpoint_folders,
    job_ids,
    link,
    load_best,
    load_server,
    run_folder,
)
from fedfms.methods import Method, ServerState, Tensors
from fedfms.settings import load_settings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build


class SharedModel(torch.nn.Module):
    """A module whose `state_dict` is the study's shared tensors and nothing else.

    NVFLARE sends the server's whole model in round 0; with the frozen part it would send that as well.
    """

    def __init__(self, shared: Tensors) -> None:
        super().__init__()
        for name, tensor in shared.items():
            owner: torch.nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))


class SharedModelPersistor(PTFileModelPersistor):
    """Builds the initial model from the study and the server's settings, and stores the run after each round.

    Args:
        study: the resolved study (`Study.to_dict()`).
        source_ckpt_file_full_name: a saved global model to start from; absolute, on the server.
        resume: ids of the jobs that this one resumes, the oldest first.
        plugins: packages that the study's method and backbone come from, {distribution: version}.

    Attributes:
        saved: the server state of the resumed job, until this job's first round is over.
        best: the best model of the resumed job.
        checkpoint: this job's resume checkpoint.
    """

    def __init__(
        self, study: dict[str, Any], source_ckpt_file_full_name: str | None = None, resume: Sequence[str] = (),
        plugins: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        super().__init__(source_ckpt_file_full_name=source_ckpt_file_full_name, load_device="cpu")
        self._raw_study, self._resume, self._plugins = study, resume, plugins
        self.study: Study | None = None
        self.method: Method | None = None
        self.shared: Tensors = {}
        self.sizes: dict[str, float] = {}
        self.pixels: dict[str, int] = {}
        self.saved: Saved | None = None
        self.best: Best | None = None
        self.checkpoint: ResumeCheckpoint | None = None
        self._round = 0  # completed rounds of the model that NVFLARE saves next
        self._dice: float | None = None  # of the best model, mean over sites

    def handle_event(self, event: str, fl_ctx: FLContext) -> None:
        """Build the model before the parent class asks for it; an error ends the job with one line."""
        if event == EventType.START_RUN:
            try:
                self._build(fl_ctx)
            except FedfmsError as error:
                self.system_panic(f"fedfms: server: {error.line()}", fl_ctx)
                return
        # The best model that is announced in round r is the one that the sites received then, after r rounds.
        self._round = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, 0))
        if event == AppEventType.GLOBAL_BEST_MODEL_AVAILABLE:
            self._dice = float(fl_ctx.get_prop(AppConstants.VALIDATION_RESULT, 0.0))
        super().handle_event(event, fl_ctx)

    def save_model(self, ml: ModelLearnable, fl_ctx: FLContext) -> None:
        """As NVFLARE's, after a round."""
        self._round = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, -1)) + 1
        super().save_model(ml, fl_ctx)

    def save_model_file(self, save_path: str) -> None:
        """As NVFLARE's. The file also has the study, the kind of model, its rounds, and the best model's Dice."""
        best = Path(save_path).name == self.best_global_model_file_name
        if self.study is not None:
            kind = "best" if best else "final"
            about = {"study": self.study.to_dict(), "kind": kind, "round": self._round}
            about |= {"dice": self._dice if best else None}
            self.persistence_manager.other_props.update(about)
        super().save_model_file(save_path)
        if best and self.checkpoint is not None:
            link(Path(save_path), self.checkpoint.folder / BEST)

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """As NVFLARE's; the method starts from the loaded checkpoint."""
        learnable = super().load_model(fl_ctx)
        if learnable is not None:
            loaded = to_tensors(learnable[ModelLearnableKey.WEIGHTS])
            if Schema.of(loaded) != Schema.of(self.shared):
                text = "fedfms: server: the saved model belongs to another study; name another one"
                self.system_panic(text, fl_ctx)
                return None
            self.shared = loaded
            if self.saved is not None:
                self._restore_files(self.saved.server.round)
        return learnable

    def _restore_files(self, round_: int) -> None:
        """Write the model files of the resumed job to where NVFLARE expects them."""
        self._round = round_
        self.save_model_file(self._ckpt_save_path)
        if self.best is not None and self.checkpoint is not None:
            shutil.copyfile(self.best.path, self._best_ckpt_save_path)
            if self.best.path != self.checkpoint.folder / BEST:
                link(self.best.path, self.checkpoint.folder / BEST)

    def store(self, server: ServerState, mirrors: Mapping[str, Tensors], rows: Sequence[str]) -> None:
        """Store the server state after a round with the round's rows: see `fedfms.flare.resume`."""
        if self.checkpoint is None:
            raise TypeError("the persistor is not started")
        mixing = server.notes.get("W")
        line = to_json({"round": server.round - 1, "W": mixing}) if mixing else None
        self.checkpoint.save(server, mirrors, rows, line)
        self.saved = None

    def _build(self, fl_ctx: FLContext) -> None:
        workspace = fl_ctx.get_workspace()
        self.study = Study.from_dict(self._raw_study)
        self.checkpoint = self._begin(workspace, fl_ctx.get_job_id(), self.study)  # first: this job may die any time
        settings = load_settings(Path(workspace.get_root_dir()))
        plugins.admit(settings.plugins, self._plugins)
        built = build(self.study, settings)
        self.method = built.method
        self.shared = built.shared()
        limit_arrays(Schema.of(self.shared).nbytes)
        self._resume_earlier(workspace, self.study, self.checkpoint)
        self.sizes = _sizes(built)
        self.pixels = {"input_px": built.model.input_px, "mask_px": built.model.mask_px}
        self.model = SharedModel(self.shared)

    def _begin(self, workspace: Workspace, job: str, study: Study) -> ResumeCheckpoint:
        earlier = checkpoint_folders(workspace, job_ids(self._resume), study)
        folders = checkpoint_folder(workspace, job), run_folder(workspace, job)
        checkpoint = ResumeCheckpoint(*folders, study, earlier)
        checkpoint.create()
        return checkpoint

    def _resume_earlier(self, workspace: Workspace, study: Study, checkpoint: ResumeCheckpoint) -> None:
        ids = job_ids(self._resume)
        self.saved = load_server(workspace, ids, study, self.shared)
        if self.saved is not None:
            self.best = load_best(workspace, ids, study)
            self.shared = self.saved.server.shared
            checkpoint.resume_from(self.saved)
        elif ids and not checkpoint_folders(workspace, ids, study):  # in a simulator, a job resumes its own id
            checkpoint.remove()  # a job that never ran cannot be resumed
            what = "the server has no state of this study under the ids that the job names"
            raise TrainingError(what, where="resume", do=f"compare the ids, or {ADVICE}")


def _sizes(built: BuiltModel) -> dict[str, float]:
    tensors = {**dict(built.model.named_parameters()), **built.trained()}  # moving statistics are trained too
    counts = {name: tensor.numel() for name, tensor in tensors.items()}
    shared = sum(counts[name] for name in built.partition.shared)
    return {
        "total": sum(counts.values()),
        "trained": sum(counts[name] for name in built.partition.trained),
        "shared": shared,
        "shared_mb": sum(t.numel() * t.element_size() for t in built.shared().values()) / 1e6,
    }
