"""From a model file to the network, with every tensor in place."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fedfms.errors import CheckpointError, SettingsError, StudyError
from fedfms.inference.inputs import InputRule
from fedfms.inference.modelfile import ModelFile, read_model
from fedfms.models import SegmentationModel
from fedfms.schema import parse
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build

_WHERE = "--model"
_DEFAULTS = SiteSettings()


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode on the settings' device.

    Attributes:
        note: a warning for the user, or "".
        cpu_tuning: as `BuiltModel.cpu_tuning`.
    """

    file: ModelFile
    model: SegmentationModel
    note: str = ""
    cpu_tuning: bool = True

    @property
    def study(self) -> Study:
        """The study in which it was trained."""
        return self.file.study


def open_model(
    path: Path, *, checkpoint: Path | None = None, study: str | None = None, overrides: Sequence[str] = (),
    run: Path | None = None, settings: SiteSettings = _DEFAULTS, rule: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[LoadedModel, InputRule]:  # fmt: skip
    """The network in a model file or an export, and its rule for volumes.

    Args:
        checkpoint: as for `load_model`.
        study, overrides, run: as for `read_model`.
        rule: fields of `InputRule` that replace the file's.

    Raises:
        FedfmsError: as `read_model` and `load_model`; a field of `rule` is not valid.
    """
    file = read_model(path, study=study, overrides=overrides, run=run)
    loaded = load_model(file, settings, checkpoint)
    fields = asdict(file.rule or InputRule()) | dict(rule)
    return loaded, parse(InputRule, fields, StudyError, where="--window", do="for example --window 40 400")


def load_model(file: ModelFile, settings: SiteSettings, checkpoint: Path | None = None) -> LoadedModel:
    """The network of a model file.

    Tensors that the file lacks come from the same source as in training. Frozen tensors come from the study's
    pre-trained weights (SHA-256 checked) or the study's seed. Private tensors, which never left their sites, get their
    local initialisation.

    Args:
        checkpoint: the file of pre-trained weights, if the settings name no folder.

    Raises:
        CheckpointError, SettingsError: the tensors are not the study's, or the weights are missing or different.
    """
    if file.holds == "all":
        return LoadedModel(file, _whole_model(file, settings), cpu_tuning=settings.cpu_tuning)
    study, settings = _with_checkpoint(file.study, settings, checkpoint)
    built = build(study, settings)
    own_model = "a site's own model is models/personal_*.pt in its run folder"
    note = ""
    if file.holds == "trained":
        _load(built, file)
    else:
        built.check_received(file.tensors)
        _load(built, replace(file, tensors=built.method.personal_model(built.trained(), {}, file.tensors)))
        if private := len(built.partition.private):
            note = (
                f"the file contains the shared tensors only; the {private} private tensors of method {study.method} "
                f"have their initial values; {own_model}"
            )
        elif built.method.personal:
            note = (
                f"this is the global model, but method {study.method} gives each site a model of its own; {own_model}"
            )
    return LoadedModel(file, built.model, note, settings.cpu_tuning)


def _load(built: BuiltModel, file: ModelFile) -> None:
    try:
        built.load(file.tensors)
    except CheckpointError as error:
        raise error.at(_WHERE) from None


def whole_state(model: SegmentationModel) -> dict[str, torch.Tensor]:
    """Every tensor of a network by name, once: MONAI's DynUNet has most of its tensors under several names."""
    once = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in once}


def _whole_model(file: ModelFile, settings: SiteSettings) -> SegmentationModel:
    """A network whose tensors are all in the file."""
    spec = replace(file.study.model, checkpoint=None, checkpoint_sha256=None)
    model = build(replace(file.study, model=spec), settings).model
    own = whole_state(model)
    different = set(own) ^ set(file.tensors)
    different |= {name for name in set(own) - different if own[name].shape != file.tensors[name].shape}
    if different:
        what = f"{len(different)} tensors do not belong to the study that it names"
        raise CheckpointError(what, where=_WHERE, do="export the model again")
    model.load_state_dict(file.tensors, strict=False)  # the file does not contain the aliases
    return model


def _with_checkpoint(study: Study, settings: SiteSettings, path: Path | None) -> tuple[Study, SiteSettings]:
    if path is None:
        if study.model.checkpoint is not None and settings.checkpoints is None:
            raise SettingsError(
                f"the model starts from {study.model.checkpoint}, whose tensors are not in its file",
                do="name that file: --checkpoint FILE",
            )
        return study, settings
    if study.model.checkpoint is None:
        raise CheckpointError("the study starts from random weights", where="--checkpoint", do="leave it out")
    model = replace(study.model, checkpoint=path.name)  # the hash, if the study has one, identifies the file
    return replace(study, model=model), replace(settings, checkpoints=path.resolve().parent)
