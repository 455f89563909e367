"""Skipped transformer blocks of every registered SAM backbone."""

import pytest
import torch

from fedfms.models import BACKBONES, family_of
from fedfms.models.sam import PromptFreeSam
from fedfms.models.tiny_vit import TinyViTEncoder
from fedfms.models.vit import ViTEncoder
from fedfms.testing.models import (
    ADAPTED,
    VARIANTS,
    Case,
    case_of,
    images,
    step,
)

ALL = [*BACKBONES, *VARIANTS]
SAM = [name for name in ALL if name in VARIANTS or family_of(name) == "sam"]


def _adapted(case: Case) -> PromptFreeSam:
    model = case.build(adapter_init="reference")
    assert isinstance(model, PromptFreeSam)
    return model


def _replace_block_by_identity(model: PromptFreeSam, index: int) -> bool:
    """Remove block `index` without `skip_blocks`, as its oracle; False for an encoder of an unknown class."""

    def identity(x: torch.Tensor, *_: object) -> torch.Tensor:
        return x

    encoder = model.image_encoder
    if isinstance(encoder, TinyViTEncoder):
        stages = [stage.blocks for stage in list(encoder.layers)[1:]]  # type: ignore[union-attr]
        block = [block for blocks in stages for block in blocks][index]  # type: ignore[union-attr]
        block.forward = identity
        return True
    if not isinstance(encoder, ViTEncoder):
        return False
    block, adapters = encoder.blocks[index], encoder.adapters[index]
    for last in (block.attn.proj, block.mlp.lin2, adapters.after_attention.up, adapters.beside_mlp.up):  # type: ignore[union-attr]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", SAM)
@torch.no_grad()
def test_a_skipped_block_is_an_identity_and_none_skipped_changes_no_bit(name: str) -> None:
    case = case_of(name)
    model, x = _adapted(case), images(case.spec)
    whole = model(x)
    model.skip_blocks(())
    assert torch.equal(model(x), whole)
    for index in range(len(model.image_encoder.block_dims)):
        expected = _adapted(case)
        model.skip_blocks({index})
        if _replace_block_by_identity(expected, index):
            assert torch.equal(model(x), expected(x)), index
        assert not torch.equal(model(x), whole), index
        assert torch.equal(model.from_prefix(model.prefix(x)), model(x)), index
    model.skip_blocks(())
    assert torch.equal(model(x), whole)


@pytest.mark.parametrize("name", SAM)
def test_adapters_of_a_skipped_block_get_no_gradient(name: str) -> None:
    case = case_of(name)
    model = _adapted(case)
    order = model.adapters_in_order()
    last = len(order) // 2 - 1
    skipped = {last} if last == 1 else {0, last}
    model.skip_blocks(skipped)
    step(model, case.spec, ADAPTED)
    for index, adapter in enumerate(order):
        for parameter in adapter:
            assert (model.get_parameter(parameter).grad is None) == (index // 2 in skipped), parameter
