"""Backbones by name. A new one is a file with its builder, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from fedfms.errors import CheckpointError, StudyError
from fedfms.models.base import SegmentationModel
from fedfms.models.checkpoints import load_checkpoint
from fedfms.models.sam import DecoderShape, build_sam
from fedfms.models.tiny_vit import TinyViTEncoder
from fedfms.models.vit import ViTEncoder, ViTShape
from fedfms.study import ModelSpec


class Builder(Protocol):
    """Makes a network; `blank` = its pre-trained tensors need no values, a checkpoint follows."""

    def __call__(
        self, spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, blank: bool
    ) -> SegmentationModel: ...


VIT_SHAPES: Mapping[str, ViTShape] = {
    "vit_b": ViTShape(embed_dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": ViTShape(embed_dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": ViTShape(embed_dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    # For tests and the demo: SAM's classes, small enough for a laptop; there are no weights for it.
    "vit_tiny": ViTShape(
        embed_dim=96,
        depth=4,
        heads=4,
        global_blocks=(1, 3),
        patch_px=8,
        window=7,
        out_dim=64,
        random_positions=True,
    ),  # fmt: skip
}
TINY_DECODER = DecoderShape(dim=64, heads=4, mlp_dim=256, iou_hidden=64)


def _vit(name: str, decoder: DecoderShape) -> Builder:
    return partial(build_sam, encoder=partial(ViTEncoder, VIT_SHAPES[name]), decoder=decoder)


BACKBONES: Mapping[str, Builder] = {
    "vit_b": _vit("vit_b", DecoderShape()),
    "vit_l": _vit("vit_l", DecoderShape()),
    "vit_h": _vit("vit_h", DecoderShape()),
    "vit_tiny": _vit("vit_tiny", TINY_DECODER),
    "tiny_vit": partial(build_sam, encoder=TinyViTEncoder, decoder=DecoderShape()),
}


def build_model(
    spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, checkpoint: Path | None = None
) -> SegmentationModel:
    """The network of a study, in float32, every parameter trainable; random values depend on `seed` alone.

    Args:
        spec: the study's `model` section.
        n_structures: C, the number of output channels.
        adapters: put two adapters in every transformer block.
        seed: the study's.
        checkpoint: the site's file of pre-trained weights.

    Raises:
        StudyError: unknown backbone, or values of `spec` that do not go together.
        CheckpointError: `spec` names a checkpoint and none is given, or the file is not right.
    """
    if spec.checkpoint is not None and checkpoint is None:
        raise CheckpointError(
            "the study starts from this file, but the site has no checkpoint folder", where=spec.checkpoint,
            do="set it in the site's settings, or leave model.checkpoint out to start from random weights",
        )  # fmt: skip
    model = _builder(spec)(spec, n_structures, adapters=adapters, seed=seed, blank=checkpoint is not None)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, sha256=spec.checkpoint_sha256)
    return model


def outline_model(spec: ModelSpec, n_structures: int, *, adapters: bool) -> SegmentationModel:
    """The network of a study without values or memory: its tensors' names, shapes and roles.

    Raises:
        StudyError: as `build_model`.
    """
    with torch.device("meta"):
        return _builder(spec)(spec, n_structures, adapters=adapters, seed=0, blank=True)


def _builder(spec: ModelSpec) -> Builder:
    if spec.backbone not in BACKBONES:
        raise StudyError(
            f"unknown backbone {spec.backbone!r}", where="model",
            do=f"known ones: {', '.join(sorted(BACKBONES))}",
        )  # fmt: skip
    return BACKBONES[spec.backbone]
