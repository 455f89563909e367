"""Builds a study's model together with its method: the same at the server and at every site."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from fedfms.errors import CheckpointError, SettingsError
from fedfms.methods import Layout, Method, Partition, Tensors, make_method, resolve_study
from fedfms.models import SegmentationModel, build_model, meta_model
from fedfms.models.checkpoints import check_accepted, check_checkpoint
from fedfms.models.meta_device import on_meta_device
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study

_DEFAULTS = SiteSettings()


@dataclass(frozen=True)
class BuiltModel:
    """A model, the method that trains it, and the partition of its tensors.

    `micro_batch`: slices per micro-batch at this site; 0 = the whole batch. `cpu_tuning`: whether
    `fedfms.training.cpu_tuning` applies.
    """

    model: SegmentationModel
    method: Method
    partition: Partition
    spec: ModelSpec
    micro_batch: int = 0
    cpu_tuning: bool = True

    def shared(self) -> Tensors:
        """The current shared tensors: copies on the CPU, in the model's order."""
        return self._copy(self.partition.shared)

    def trained(self) -> Tensors:
        """All current trained tensors: copies on the CPU."""
        return self._copy((*self.partition.shared, *self.partition.private))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name, in the model's order."""
        return {name: p for name, p in self.model.named_parameters() if name in self.partition.trained}

    def load(self, tensors: Tensors) -> None:
        """Copy `tensors` into the model; they must be exactly its trained tensors.

        Raises:
            CheckpointError: a name or a shape differs from the model's.
        """
        own = self.own()
        _check_names(set(tensors) ^ self.partition.trained, "model")
        with torch.no_grad():
            for name, tensor in tensors.items():
                if tensor.shape != own[name].shape:
                    raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
                own[name].copy_(tensor)

    def check_received(self, tensors: Collection[str]) -> None:
        """Check the names of a server's tensors: shared ones of this model, and all of them unless the method sends
        parts. `load` checks the shapes.

        Raises:
            CheckpointError: a name differs from the model's.
        """
        odd = set(tensors) - set(self.partition.shared)
        if not self.method.sends_parts:
            odd |= set(self.partition.shared) - set(tensors)
        _check_names(odd, "received model")

    def train_only(self, names: Collection[str]) -> None:
        """Require gradients of these parameters and of no others."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)

    def own(self) -> Tensors:
        """The model's parameters and buffers by name, not copied."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _copy(self, names: tuple[str, ...]) -> Tensors:
        own = self.own()
        return {name: own[name].detach().to("cpu", copy=True) for name in names}


def _check_names(odd: Collection[str], of: str) -> None:
    if odd:
        what = f"{len(odd)} tensors of the {of} are not those of this study's"
        raise CheckpointError(what, do="use one version of the job at the server and at all sites")


def build(study: Study, settings: SiteSettings) -> BuiltModel:
    """The study's model on the site's device, in evaluation mode; only its trained tensors require gradients.

    Raises:
        StudyError, CheckpointError, SettingsError: see `resolve_study`, `build_model` and `checkpoint_path`.
    """
    study, method = _resolve(study)
    structures, checkpoint = len(study.data.structures), checkpoint_path(study, settings)
    model = build_model(
        study.model, structures, adapters=method.adapters, seed=study.seed, checkpoint=checkpoint, plan=method.plan
    )
    method.extend_model(model)
    return _bind(model.to(settings.torch_device), method, study.model, settings)


def build_on_meta(study: Study, settings: SiteSettings = _DEFAULTS) -> BuiltModel:
    """Like `build`, as a meta-device model: names and shapes, without values, memory or a checkpoint file.

    Args:
        settings: only those that choose how the model computes are used.

    Raises:
        StudyError: the study's model or method is invalid.
    """
    study, method = _resolve(study)
    model = _meta_model(study, method)
    with on_meta_device():
        method.extend_model(model)
    return _bind(model.to("meta"), method, study.model, settings)


def check_weights(study: Study, settings: SiteSettings) -> None:
    """Check that the study's checkpoint file, if any, is at this site and fits the model, without building it.

    Raises:
        StudyError, CheckpointError, SettingsError: as `build`.
    """
    study, method = _resolve(study)
    if (path := checkpoint_path(study, settings)) is not None:
        check_checkpoint(_meta_model(study, method), path, sha256=study.model.checkpoint_sha256)


def _resolve(study: Study) -> tuple[Study, Method]:
    method = make_method(study.method, study.method_options)
    return resolve_study(study, method), method


def _meta_model(study: Study, method: Method) -> SegmentationModel:
    return meta_model(study.model, len(study.data.structures), adapters=method.adapters, plan=method.plan)


def _bind(model: SegmentationModel, method: Method, spec: ModelSpec, settings: SiteSettings) -> BuiltModel:
    layout = Layout.of(model)
    method.bind(layout)
    model.configure(
        plain_attention=settings.attention == "plain", gradient_checkpointing=settings.gradient_checkpointing
    )
    built = BuiltModel(model.eval(), method, method.partition(layout), spec, settings.micro_batch, settings.cpu_tuning)
    built.train_only(built.partition.trained)
    return built


def checkpoint_path(study: Study, settings: SiteSettings) -> Path | None:
    """The study's checkpoint file at this site; None if the study names none.

    Raises:
        SettingsError: the study names a file, but the site has no checkpoint folder.
        CheckpointError: the file is missing, or not among those that the site accepts.
    """
    if study.model.checkpoint is None:
        return None
    if settings.checkpoints is None:
        raise SettingsError(
            f"study {study.name} starts from {study.model.checkpoint}, but this site names no checkpoint folder",
            do="set `checkpoints: FOLDER` in local/fedfms_site.yaml, or in the file that FEDFMS_SITE names",
        )
    path = settings.checkpoints / study.model.checkpoint
    if settings.checkpoint_sha256:
        check_accepted(path, settings.checkpoint_sha256)
    return path
