"""From a study and a site's settings to a model with its method: the same at the server and at every site."""

from __future__ import annotations

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
_ONE = "use one version of the job at the server and at all sites"


@dataclass(frozen=True)
class BuiltModel:
    """A model, the method that trains it, and what becomes of each of its parameters.

    `micro_batch`: slices that this site works off at a time; 0 = a batch as a whole. `tuned`: whether the processor is
    used as `fedfms.training.cpu_tuning` has it.
    """

    model: SegmentationModel
    method: Method
    partition: Partition
    spec: ModelSpec
    micro_batch: int = 0
    tuned: bool = True

    def shared(self) -> Tensors:
        """The shared tensors as they are now: copies on the CPU, in the model's own order."""
        return self._copy(self.partition.shared)

    def trained(self) -> Tensors:
        """All trained tensors as they are now: copies on the CPU."""
        return self._copy((*self.partition.shared, *self.partition.private))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name, in the model's own order."""
        return {name: p for name, p in self.model.named_parameters() if name in self.partition.trained}

    def load(self, tensors: Tensors) -> None:
        """Put trained tensors into the model; `tensors` holds each of them, of the right shape.

        Raises:
            CheckpointError: a name or a shape differs from the model's.
        """
        own = self.own()
        if set(tensors) != self.partition.trained:
            odd = set(tensors) ^ self.partition.trained
            raise CheckpointError(f"{len(odd)} tensors of the model are not those of this study's", do=_ONE)
        with torch.no_grad():
            for name, tensor in tensors.items():
                if tensor.shape != own[name].shape:
                    raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
                own[name].copy_(tensor)

    def check_received(self, tensors: Collection[str]) -> None:
        """A server's tensors are the shared ones of this model, all of them unless the method sends parts.

        Raises:
            CheckpointError: a name differs from the model's; `load` looks at the shapes.
        """
        odd = set(tensors) - set(self.partition.shared)
        if not self.method.sends_parts:
            odd |= set(self.partition.shared) - set(tensors)
        if odd:
            raise CheckpointError(f"{len(odd)} tensors of the received model are not those of this study's", do=_ONE)

    def train_only(self, names: Collection[str]) -> None:
        """Give gradients to these parameters and to no other."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)

    def own(self) -> Tensors:
        """The model's parameters and buffers by name: themselves, no copies."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _copy(self, names: tuple[str, ...]) -> Tensors:
        own = self.own()
        return {name: own[name].detach().to("cpu", copy=True) for name in names}


def build(study: Study, settings: SiteSettings) -> BuiltModel:
    """The study's model on the site's device, in evaluation mode, with gradients for its trained tensors only.

    Raises:
        StudyError, CheckpointError, SettingsError: see `resolve_study`, `build_model` and `checkpoint_path`.
    """
    method = make_method(study.method, study.method_options)
    study = resolve_study(study, method)
    model = build_model(
        study.model,
        len(study.data.structures),
        adapters=method.adapters,
        seed=study.seed,
        checkpoint=checkpoint_path(study, settings),
        plan=method.plan,
    )
    method.extend_model(model)
    return _bound(model.to(settings.torch_device), method, study.model, settings)


def build_on_meta(study: Study, settings: SiteSettings = _DEFAULTS) -> BuiltModel:
    """As `build`, on torch's meta device: names and shapes, without values, memory or a file of weights.

    Args:
        settings: of which counts how the model's numbers are worked out.

    Raises:
        StudyError: the model or the method of the study cannot be.
    """
    method = make_method(study.method, study.method_options)
    study = resolve_study(study, method)
    model = meta_model(study.model, len(study.data.structures), adapters=method.adapters, plan=method.plan)
    with on_meta_device():
        method.extend_model(model)
    return _bound(model.to("meta"), method, study.model, settings)


def _bound(model: SegmentationModel, method: Method, spec: ModelSpec, settings: SiteSettings) -> BuiltModel:
    layout = Layout.of(model)
    method.bind(layout)
    model.work_by(plain_attention=settings.attention == "plain", checkpointing=settings.checkpointing)
    built = BuiltModel(model.eval(), method, method.partition(layout), spec, settings.micro_batch, settings.tuned)
    built.train_only(built.partition.trained)
    return built


def check_weights(study: Study, settings: SiteSettings) -> None:
    """See that the file of weights that the study names, if any, is at this site and fits the model; none is built.

    Raises:
        StudyError, CheckpointError, SettingsError: as `build`.
    """
    method = make_method(study.method, study.method_options)
    study = resolve_study(study, method)
    if (path := checkpoint_path(study, settings)) is not None:
        model = meta_model(study.model, len(study.data.structures), adapters=method.adapters, plan=method.plan)
        check_checkpoint(model, path, sha256=study.model.checkpoint_sha256)


def checkpoint_path(study: Study, settings: SiteSettings) -> Path | None:
    """Where this site keeps the file of weights that the study names, or None when it names none.

    Raises:
        SettingsError: the study names a file, but the site has no checkpoint folder.
        CheckpointError: the site accepts certain files only, and this is none of them.
    """
    if study.model.checkpoint is None:
        return None
    if settings.checkpoints is None:
        raise SettingsError(
            f"study {study.name} starts from {study.model.checkpoint}, but this site names no checkpoint folder",
            do="write `checkpoints: FOLDER` in local/fedfms_site.yaml, or in the file that FEDFMS_SITE names",
        )
    path = settings.checkpoints / study.model.checkpoint
    if settings.checkpoint_sha256:
        check_accepted(path, settings.checkpoint_sha256)
    return path
