"""`model.adapter_blocks`: which blocks have adapters, what the prefix covers, and equal numbers with any cut."""

from dataclasses import replace

import pytest
import torch

from fedfms.errors import StudyError
from fedfms.models import build_model, meta_model
from fedfms.models.sam import PromptFreeSam
from fedfms.study import ModelSpec

SPECS = {
    "vit_tiny": ModelSpec(backbone="vit_tiny", input_px=64),
    "tiny_vit": ModelSpec(backbone="tiny_vit", input_px=64),
}
DEPTH = {"vit_tiny": 4, "tiny_vit": 10}
CASES = [(name, count) for name, depth in DEPTH.items() for count in range(depth + 1)]


def _spec(name: str, count: int) -> ModelSpec:
    return replace(SPECS[name], adapter_blocks=f"last:{count}" if count else "none", adapter_init="zero")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), CASES)
def test_the_last_blocks_have_adapters_and_the_prefix_covers_the_others(name: str, count: int) -> None:
    whole = build_model(SPECS[name], 1, adapters=True, seed=0).eval()
    model = build_model(_spec(name, count), 1, adapters=True, seed=0).eval()
    assert isinstance(model, PromptFreeSam)
    assert len(model.adapters_in_order()) == 2 * count
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # adapters are zero at the start, so every cut is the pre-trained function
        assert torch.equal(model.from_prefix(model.prefix(images)), whole(images))
    assert model.prefix_is_costly or count == DEPTH[name]
    roles = model.roles()
    assert {roles[one] for one in model.prefix_names() if one in roles} == {"encoder"}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.image_encoder.adapters.requires_grad_(True)
    model.mask_decoder.requires_grad_(True)
    features = model.prefix(images)
    assert not features.requires_grad, "the prefix has no trained tensor"
    model.from_prefix(features).sum().backward()
    names = {one for adapter in model.adapters_in_order() for one in adapter}
    assert all(model.get_parameter(one).grad is not None for one in names)


@pytest.mark.parametrize(("name", "count"), CASES)
def test_the_prefix_depends_on_the_named_tensors_alone(name: str, count: int) -> None:
    """Every encoder tensor outside `prefix_names` can change without changing the prefix; every one inside is used."""
    model = meta_model(_spec(name, count), 1, adapters=True)
    assert isinstance(model, PromptFreeSam)
    encoder = {one for one, role in model.roles().items() if role == "encoder"}
    images = torch.empty(1, 3, 64, 64, device="meta")
    model.prefix(images).sum().backward()
    used = {one for one in encoder if model.get_parameter(one).grad is not None}
    assert used == encoder & model.prefix_names()


@pytest.mark.parametrize("text", ["last:0", "last:", "first:2", "some", "last:-1"])
def test_another_value_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="adapter_blocks"):
        replace(SPECS["vit_tiny"], adapter_blocks=text)


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(StudyError, match="adapter_blocks is last:5, but vit_tiny has 4 blocks; from last:1 to last:4"):
        build_model(replace(SPECS["vit_tiny"], adapter_blocks="last:5"), 1, adapters=True, seed=0)
