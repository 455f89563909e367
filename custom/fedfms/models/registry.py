"""Registry of backbones, in families that different methods train; a new backbone is a file and a line here."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fedfms.errors import CheckpointError, StudyError
from fedfms.models.base import SegmentationModel
from fedfms.models.checkpoints import load_checkpoint
from fedfms.models.meta_device import on_meta_device
from fedfms.models.nnunet import build_nnunet
from fedfms.models.sam import DecoderShape, build_sam
from fedfms.models.tiny_vit import TinyViTEncoder
from fedfms.models.unet import UNetShape, build_unet
from fedfms.models.vit import ViTEncoder, ViTShape
from fedfms.plugins import Registry
from fedfms.study import ModelSpec


class Builder(Protocol):
    """Builds a network; `blank`: its pre-trained tensors get no values, as a checkpoint follows. See `build_model`."""

    def __call__(
        self, spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, blank: bool, plan: Mapping[str, Any]
    ) -> SegmentationModel: ...


@dataclass(frozen=True)
class Family:
    """Backbones that the same methods train (`Method.family`)."""

    default: str
    """Replaces a SAM backbone of a study in methods of this family."""
    small: str
    """Replaces SAM's small one; for tests and the demo."""
    backbones: Mapping[str, Builder]


VIT_SHAPES: Mapping[str, ViTShape] = {
    "vit_b": ViTShape(embed_dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": ViTShape(embed_dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": ViTShape(embed_dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    # SAM's classes at laptop size; without pre-trained weights.
    "vit_tiny": ViTShape(
        embed_dim=96, depth=4, heads=4, global_blocks=(1, 3), patch_px=8, window=7, out_dim=64, random_positions=True
    ),
}
TINY_DECODER = DecoderShape(dim=64, heads=4, mlp_dim=256, iou_hidden=64)


def _vit(name: str, decoder: DecoderShape) -> Builder:
    return partial(build_sam, encoder=partial(ViTEncoder, VIT_SHAPES[name]), decoder=decoder)


FAMILIES: Mapping[str, Family] = {
    "sam": Family(
        default="vit_b",
        small="vit_tiny",
        backbones={
            "vit_b": _vit("vit_b", DecoderShape()),
            "vit_l": _vit("vit_l", DecoderShape()),
            "vit_h": _vit("vit_h", DecoderShape()),
            "tiny_vit": partial(build_sam, encoder=TinyViTEncoder, decoder=DecoderShape()),
            "vit_tiny": _vit("vit_tiny", TINY_DECODER),
        },
    ),
    "unet": Family(
        default="unet",
        small="unet_tiny",
        backbones={
            "unet": partial(build_unet, shape=UNetShape()),
            # The mask size of vit_tiny on the phantom.
            "unet_tiny": partial(build_unet, shape=UNetShape(channels=(8, 16, 32, 64, 128), max_mask_px=64)),
        },
    ),
    "nnunet": Family(
        default="nnunet",
        small="nnunet_tiny",
        backbones={
            "nnunet": build_nnunet,
            "nnunet_tiny": partial(build_nnunet, base_features=8, max_features=64, max_mask_px=64),
        },
    ),
}


@dataclass(frozen=True)
class Backbone:
    """A backbone of a plug-in, or of this package: its builder, and the family of the methods that train it."""

    family: str
    build: Builder


def _checked(name: str, found: Any) -> Backbone:
    """A plug-in's backbone."""
    if not isinstance(found, Backbone) or not callable(found.build):
        raise TypeError("it is not a fedfms.models.Backbone")
    if found.family not in FAMILIES:
        raise TypeError(f"its family is {found.family!r}, not one of {sorted(FAMILIES)}")
    return found


BACKBONES = Registry(
    "fedfms.backbones", "backbone",
    {name: Backbone(key, build) for key, family in FAMILIES.items() for name, build in family.backbones.items()},
    _checked,
)  # fmt: skip


def family_of(backbone: str) -> str:
    """The family of a backbone.

    Raises:
        StudyError: unknown backbone.
    """
    return _entry(backbone).family


def _entry(backbone: str) -> Backbone:
    if backbone not in BACKBONES:
        what = f"unknown backbone {backbone!r}"
        raise StudyError(what, where="model", do=f"known ones: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[backbone]


def replacement_backbone(family: str, sam_backbone: str) -> str:
    """The backbone of `family` that replaces a study's SAM backbone: its small one for SAM's small one."""
    return FAMILIES[family].small if sam_backbone == FAMILIES["sam"].small else FAMILIES[family].default


def build_model(
    spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, checkpoint: Path | None = None,
    plan: Mapping[str, Any] | None = None,
) -> SegmentationModel:  # fmt: skip
    """The network of a study, in float32, every parameter trainable; random values depend on `seed` alone.

    Args:
        spec: the study's `model` section.
        n_structures: C, the number of output channels.
        adapters: insert two adapters into every transformer block.
        seed: the study's.
        checkpoint: the site's file of pre-trained weights.
        plan: the layout of a network that follows one (`nnunet_plan.Plan`); None for the others.

    Raises:
        StudyError: unknown backbone, or values of `spec` that contradict each other.
        CheckpointError: `spec` names a checkpoint and none is given, or the file is wrong.
    """
    if spec.checkpoint is not None and checkpoint is None:
        raise CheckpointError(
            "the study starts from this file, but the site has no checkpoint folder", where=spec.checkpoint,
            do="set it in the site's settings, or omit model.checkpoint to start from random weights",
        )  # fmt: skip
    blank = checkpoint is not None
    model = _builder(spec)(spec, n_structures, adapters=adapters, seed=seed, blank=blank, plan=plan or {})
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, sha256=spec.checkpoint_sha256)
    return model


def meta_model(
    spec: ModelSpec, n_structures: int, *, adapters: bool, plan: Mapping[str, Any] | None = None
) -> SegmentationModel:
    """The network of a study on torch's meta device: names, shapes and roles of its tensors, no values, no memory.

    Raises:
        StudyError: as `build_model`.
    """
    with on_meta_device():
        return _builder(spec)(spec, n_structures, adapters=adapters, seed=0, blank=True, plan=plan or {})


def _builder(spec: ModelSpec) -> Builder:
    return _entry(spec.backbone).build
