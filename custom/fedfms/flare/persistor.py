"""The server's model: only the shared tensors, kept by NVFLARE's own PyTorch persistor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor

from fedfms.errors import FedfmsError, TrainingError
from fedfms.federation.rows import line_of
from fedfms.federation.state import Saved
from fedfms.federation.validation import Schema
from fedfms.flare.array_limit import limit_arrays
from fedfms.flare.messages import to_tensors
from fedfms.flare.resume import (
    BEST,
    MEND,
    Best,
    Keeper,
    job_ids,
    kept_folder,
    kept_folders,
    put,
    run_folder,
    saved_best,
    saved_server,
)
from fedfms.methods import Method, ServerState, Tensors
from fedfms.settings import load_settings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build


class SharedModel(torch.nn.Module):
    """A module whose `state_dict` is the study's shared tensors under their own names, and nothing else.

    What a server sends in round 0 is what it holds; with the whole model it would send the frozen part as well.
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
    """PTFileModelPersistor for a study: builds the initial model from the study and the server's own settings.

    Args:
        study: the resolved study (`Study.to_dict()`).
        source_ckpt_file_full_name: a saved global model to go on from; absolute, on the server.
        resume: ids of the jobs that this one goes on from, the oldest first.

    What it tells the aggregator, the selector and the recorder of that: `saved`, until the first round is over, and
    `best`; `keeper` keeps the run for a job that may go on from this one.
    """

    def __init__(
        self, study: dict[str, Any], source_ckpt_file_full_name: str | None = None, resume: Sequence[str] = ()
    ) -> None:
        super().__init__(source_ckpt_file_full_name=source_ckpt_file_full_name, load_device="cpu")
        self._raw_study, self._resume = study, resume
        self.study: Study | None = None
        self.method: Method | None = None
        self.shared: Tensors = {}
        self.sizes: dict[str, float] = {}
        self.pixels: dict[str, int] = {}
        self.saved: Saved | None = None
        self.best: Best | None = None
        self.keeper: Keeper | None = None
        self._round = 0  # rounds whose result the model is that NVFLARE saves next
        self._dice: float | None = None  # mean over sites, of the best one

    def handle_event(self, event: str, fl_ctx: FLContext) -> None:
        """Build the model before the parent class asks for it; a fault ends the job with one line."""
        if event == EventType.START_RUN:
            try:
                self._build(fl_ctx)
            except FedfmsError as error:
                self.system_panic(f"fedfms: server: {error.line()}", fl_ctx)
                return
        # In round r it is the best one's turn: the model that the sites received then, which is of r rounds.
        self._round = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, 0))
        if event == AppEventType.GLOBAL_BEST_MODEL_AVAILABLE:
            self._dice = float(fl_ctx.get_prop(AppConstants.VALIDATION_RESULT, 0.0))
        super().handle_event(event, fl_ctx)

    def save_model(self, ml: ModelLearnable, fl_ctx: FLContext) -> None:
        """As NVFLARE's, after a round."""
        self._round = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, -1)) + 1
        super().save_model(ml, fl_ctx)

    def save_model_file(self, save_path: str) -> None:
        """As NVFLARE's; the file tells by itself what it is: its study, which model, of how many rounds, and of the
        best one the Dice by which it was chosen.
        """
        best = Path(save_path).name == self.best_global_model_file_name
        if self.study is not None:
            kind = "best" if best else "final"
            told = {"study": self.study.to_dict(), "kind": kind, "round": self._round}
            told |= {"dice": self._dice if best else None}
            self.persistence_manager.other_props.update(told)
        super().save_model_file(save_path)
        if best and self.keeper is not None:
            put(Path(save_path), self.keeper.kept / BEST)

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """As NVFLARE's; what it loads, a checkpoint to go on from, is what the method starts with."""
        learnable = super().load_model(fl_ctx)
        if learnable is not None:
            loaded = to_tensors(learnable[ModelLearnableKey.WEIGHTS])
            if Schema.of(loaded) != Schema.of(self.shared):
                self.system_panic("fedfms: server: the saved model is not of this study; name another one", fl_ctx)
                return None
            self.shared = loaded
            if self.saved is not None:
                self._put_back(self.saved.server.round)
        return learnable

    def _put_back(self, round_: int) -> None:
        """The files of models where NVFLARE has them, as they were when the earlier job was cut."""
        self._round = round_
        self.save_model_file(self._ckpt_save_path)
        if self.best is not None and self.keeper is not None:
            shutil.copyfile(self.best.path, self._best_ckpt_save_path)
            if self.best.path != self.keeper.kept / BEST:
                put(self.best.path, self.keeper.kept / BEST)

    def keep(self, server: ServerState, mirrors: Mapping[str, Tensors], rows: Sequence[str]) -> None:
        """Keep the server after a round, with the rows of who took part in it: see `fedfms.flare.resume`."""
        if self.keeper is None:
            raise TypeError("the persistor must have been started")
        mixing = server.notes.get("W")
        line = line_of({"round": server.round - 1, "W": mixing}) if mixing else None
        self.keeper.save(server, mirrors, rows, line)
        self.saved = None

    def _build(self, fl_ctx: FLContext) -> None:
        workspace = fl_ctx.get_workspace()
        self.study = Study.from_dict(self._raw_study)
        self.keeper = self._begin(workspace, fl_ctx.get_job_id(), self.study)  # first: a job that dies now is known
        built = build(self.study, load_settings(Path(workspace.get_root_dir())))
        self.method = built.method
        self.shared = built.shared()
        limit_arrays(Schema.of(self.shared).nbytes)
        self._go_on(workspace, self.study, self.keeper)
        self.sizes = _sizes(built)
        self.pixels = {"input_px": built.model.input_px, "mask_px": built.model.mask_px}
        self.model = SharedModel(self.shared)

    def _begin(self, workspace: Workspace, job: str, study: Study) -> Keeper:
        ids = job_ids(self._resume)
        earlier = kept_folders(workspace, ids, study)
        keeper = Keeper(kept_folder(workspace, job), run_folder(workspace, job), study, earlier)
        keeper.begin()
        return keeper

    def _go_on(self, workspace: Workspace, study: Study, keeper: Keeper) -> None:
        ids = job_ids(self._resume)
        self.saved = saved_server(workspace, ids, study, self.shared)
        if self.saved is not None:
            self.best = saved_best(workspace, ids, study)
            self.shared = self.saved.server.shared
            keeper.go_on(self.saved)
        elif ids and not kept_folders(workspace, ids, study):  # in a simulator, a job goes on from its own id
            keeper.forget()  # a job that was not run is none to go on from
            what = "the server has kept nothing of this study under the ids that the job names"
            raise TrainingError(what, where="resume", do=f"compare the ids, or {MEND}")


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
