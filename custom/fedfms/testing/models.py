"""Helpers of the tests of networks: images, a training step, checks of gradients; one case for each backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from fedfms.errors import StudyError
from fedfms.models import BACKBONES, SegmentationModel, family_of, meta_model
from fedfms.models.registry import Builder
from fedfms.models.vit import ViTShape
from fedfms.study import ModelSpec

SIZES_PX = (32, 64, 96, 128, 224, 256, 512, 1024)  # a backbone is tested at the first that it accepts
MAX_PARAMETERS = 50_000_000  # larger backbones run with values at a depth of two blocks: see `shallow`
VARIANTS: Mapping[str, ModelSpec] = {
    "vit_tiny-windows": ModelSpec(backbone="vit_tiny", input_px=64),  # two windows per side
    "vit_tiny-reference": ModelSpec(backbone="vit_tiny", input_px=64, window_pad="reference", adapter_act="gelu"),
    "tiny_vit-mobile_sam": ModelSpec(backbone="tiny_vit", input_px=64, stem="mobile_sam", normalise="sam"),
}
ADAPTED = ("adapter", "decoder", "head")


@dataclass(frozen=True)
class Case:
    """A backbone, or a variant of its options, at a size at which a test can afford values."""

    spec: ModelSpec
    builder: Builder

    @property
    def adapters(self) -> bool:
        """Whether the backbone can have adapters."""
        return family_of(self.spec.backbone) == "sam"

    @property
    def trained(self) -> tuple[str, ...]:
        """Roles that a method trains: with adapters, not the encoder."""
        return ADAPTED if self.adapters else ("encoder", "decoder", "head")

    def build(
        self, n_structures: int = 1, *, adapters: bool | None = None, seed: int = 0, **changes: Any
    ) -> SegmentationModel:
        """The network, with adapters where it can have them."""
        adapters = self.adapters if adapters is None else adapters
        spec = replace(self.spec, **changes)
        return self.builder(spec, n_structures, adapters=adapters, seed=seed, blank=False, plan={})


@cache
def case_of(name: str) -> Case:
    """The case of a registered backbone or of one of `VARIANTS`."""
    spec = VARIANTS.get(name) or ModelSpec(backbone=name, input_px=smallest_px(name))
    builder = BACKBONES[spec.backbone].build
    large = sum(p.numel() for p in meta_model(spec, 1, adapters=False).parameters()) > MAX_PARAMETERS
    return Case(spec, shallow(builder) if large else builder)


def smallest_px(backbone: str) -> int:
    """The first of `SIZES_PX` that a backbone accepts."""
    for px in SIZES_PX:
        try:
            meta_model(ModelSpec(backbone=backbone, input_px=px), 1, adapters=False)
        except StudyError:
            continue
        return px
    raise AssertionError(f"{backbone} accepts none of {SIZES_PX}")


def shallow(builder: Builder) -> Builder:
    """A ViT's builder with two blocks, one windowed and one global, of full width; other builders unchanged."""
    encoder = getattr(builder, "keywords", {}).get("encoder")
    if not isinstance(encoder, partial) or not encoder.args or not isinstance(shape := encoder.args[0], ViTShape):
        return builder
    two_blocks = partial(encoder.func, replace(shape, depth=2, global_blocks=(1,)))
    return partial(builder.func, **{**builder.keywords, "encoder": two_blocks})  # type: ignore[attr-defined]


def images(spec: ModelSpec, batch: int = 2) -> torch.Tensor:
    """The same random images each time: float32 (batch, 3, input_px, input_px) in 0..1."""
    return torch.rand(batch, 3, spec.input_px, spec.input_px, generator=torch.Generator().manual_seed(1))


def train_only(model: SegmentationModel, trained: tuple[str, ...]) -> None:
    """Let the parameters of these roles train, and no others."""
    roles = model.roles()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(roles[name] in trained)


def step(model: SegmentationModel, spec: ModelSpec, trained: tuple[str, ...]) -> None:
    """Gradients of all parameters of these roles."""
    train_only(model, trained)
    logits = model.train()(images(spec))
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))).sum().backward()


def assert_gradients(model: SegmentationModel, trained: tuple[str, ...]) -> None:
    """Trained parameters have a gradient, others none; only key biases may have zero, as softmax cancels them."""
    roles = model.roles()
    for name, parameter in model.named_parameters():
        if roles[name] in trained:
            assert parameter.grad is not None, name
            zero = not parameter.is_meta and not parameter.grad.abs().max() > 0
            assert name.endswith("k_proj.bias") or not zero, name
        else:
            assert parameter.grad is None, name
