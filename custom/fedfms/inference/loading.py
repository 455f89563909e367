"""From a model's file to the network, with every tensor in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedfms.errors import CheckpointError, SettingsError
from fedfms.inference.modelfile import ModelFile
from fedfms.models import SegmentationModel
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build

_WHERE = "--model"


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode on the settings' device, and `note`: what a reader must know of it, or "".

    `tuned`: as of `BuiltModel`.
    """

    file: ModelFile
    model: SegmentationModel
    note: str = ""
    tuned: bool = True

    @property
    def study(self) -> Study:
        """The study that it was trained in."""
        return self.file.study

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(self.model.parameters()).device


def load_model(file: ModelFile, settings: SiteSettings, checkpoint: Path | None = None) -> LoadedModel:
    """The network of a model's file.

    What the file does not hold comes from where training had it from: frozen tensors from the study's file of
    pre-trained weights (SHA-256 checked) or the study's seed; private ones, which never left their sites, as they
    began, as for a site that took no part in training.

    Args:
        checkpoint: the file of pre-trained weights, where the settings name no folder.

    Raises:
        CheckpointError, SettingsError: tensors that are not the study's; weights that are missing or others.
    """
    if file.holds == "all":
        return LoadedModel(file, _whole(file, settings), tuned=settings.tuned)
    study, settings = _with_checkpoint(file.study, settings, checkpoint)
    built = build(study, settings)
    note = ""
    if file.holds == "trained":
        _load(built, file)
    else:
        built.check_received(file.tensors)
        _load(built, replace(file, tensors=built.method.personal_model(built.trained(), {}, file.tensors)))
        if built.partition.private:
            note = (
                f"the file holds the shared tensors only: {len(built.partition.private)} private ones of method "
                f"{study.method} are as they began; a site's own model is models/personal_*.pt in its run folder"
            )
        elif built.method.personal:
            note = (
                f"method {study.method} gives each site a model of its own, and this is the global one; a site's own "
                "is models/personal_*.pt in its run folder"
            )
    return LoadedModel(file, built.model, note, settings.tuned)


def _load(built: BuiltModel, file: ModelFile) -> None:
    try:
        built.load(file.tensors)
    except CheckpointError as error:
        raise error.at(_WHERE) from None


def whole_state(model: SegmentationModel) -> dict[str, torch.Tensor]:
    """Every tensor of a network by name, once: MONAI's DynUNet has most of its own under several names."""
    once = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in once}


def _whole(file: ModelFile, settings: SiteSettings) -> SegmentationModel:
    """A network all of whose tensors are the file's."""
    spec = replace(file.study.model, checkpoint=None, checkpoint_sha256=None)
    model = build(replace(file.study, model=spec), settings).model
    own = whole_state(model)
    odd = set(own) ^ set(file.tensors)
    odd |= {name for name in set(own) - odd if own[name].shape != file.tensors[name].shape}
    if odd:
        what = f"{len(odd)} tensors are not those of the study that it names"
        raise CheckpointError(what, where=_WHERE, do="export the model again")
    model.load_state_dict(file.tensors, strict=False)  # an alias of one of them is not in the file
    return model


def _with_checkpoint(study: Study, settings: SiteSettings, path: Path | None) -> tuple[Study, SiteSettings]:
    if path is None:
        if study.model.checkpoint is not None and settings.checkpoints is None:
            raise SettingsError(
                f"the model starts from {study.model.checkpoint}, whose tensors its file leaves out",
                do="name that file: --checkpoint FILE",
            )
        return study, settings
    if study.model.checkpoint is None:
        raise CheckpointError("the study starts from random weights", where="--checkpoint", do="leave it out")
    model = replace(study.model, checkpoint=path.name)  # the hash, if the study tells it, is what counts
    return replace(study, model=model), replace(settings, checkpoints=path.resolve().parent)
