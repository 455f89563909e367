"""What the networks without adapters promise: shapes, roles, gradients, buffers that move, random values."""

from __future__ import annotations

import pytest
import torch

from fedfms.models import BACKBONES, build_model, family_of
from fedfms.study import ModelSpec
from tests.models.make import assert_gradients, built_by_seed, images, step

SCRATCH = [name for name in BACKBONES if family_of(name) != "sam"]
SMALL_SCRATCH = [ModelSpec(backbone=name, input_px=64) for name in SCRATCH if name.endswith("_tiny")]


@pytest.mark.parametrize("backbone", SCRATCH)
def test_networks_from_scratch_on_meta(backbone: str) -> None:
    spec = ModelSpec(backbone=backbone, input_px=256)
    with torch.device("meta"):
        model = build_model(spec, 2, adapters=False, seed=0).eval()
        logits = model(torch.empty(2, 3, 256, 256))
    assert logits.shape == (2, 2, model.mask_px, model.mask_px)
    assert model.mask_px == (64 if backbone.endswith("_tiny") else 256)
    assert (model.backbone, model.family, model.train_mode) == (backbone, family_of(backbone), True)
    roles = model.roles()
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert set(roles.values()) == {"encoder", "decoder", "head"}
    assert model.adapters_in_order() == []
    assert model.prefix_names() == frozenset()
    assert not model.prefix_is_costly
    assert sorted(model.moving_buffers()) == sorted(dict(model.named_buffers()))


@pytest.mark.parametrize("spec", SMALL_SCRATCH, ids=lambda spec: spec.backbone)
def test_all_of_a_network_from_scratch_learns_and_its_buffers_move(spec: ModelSpec) -> None:
    model = build_model(spec, 2, adapters=False, seed=0)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step(model, spec, ("encoder", "decoder", "head"))
    assert_gradients(model, ("encoder", "decoder", "head"))
    assert all(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("spec", SMALL_SCRATCH, ids=lambda spec: spec.backbone)
@torch.no_grad()
def test_a_network_from_scratch_scores_each_image_alone(spec: ModelSpec) -> None:
    model = build_model(spec, 1, adapters=False, seed=0).eval()
    x = images(spec, 3)
    together = model(x)
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.from_prefix(model.prefix(x)), together)
    with pytest.raises(ValueError, match=r"not \(1, 3, 72, 72\)"):
        model(torch.zeros(1, 3, 72, 72))


@pytest.mark.parametrize("spec", SMALL_SCRATCH, ids=lambda spec: spec.backbone)
def test_a_network_from_scratch_depends_on_the_seed_alone(spec: ModelSpec) -> None:
    one, other = built_by_seed(spec, adapters=False)
    assert any(not torch.equal(one[name], other[name]) for name in one)
