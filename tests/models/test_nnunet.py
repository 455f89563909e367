"""nnU-Net's rules, against its own planner and by hand; a network built from a plan."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.errors import StudyError
from fedfms.models import build_model
from fedfms.models.nnunet_plan import Plan, feature_values, padded, plan_at, plan_for
from fedfms.study import ModelSpec

SMALL: dict[str, Any] = {
    "input_px": 32, "features": [4, 6, 8, 8], "kernels": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "batch_size": 2
}  # fmt: skip


def test_the_published_reference_case() -> None:
    """512 x 512, batch 12 in 8 GB: eight stages down to 4 px, from 32 to at most 512 channels."""
    plan = plan_for(512, 512, images=1000, n_structures=1)
    assert plan.features == (32, 64, 128, 256, 512, 512, 512, 512)
    assert plan.strides == (1, 2, 2, 2, 2, 2, 2, 2)
    assert plan.kernels == (3,) * 8
    assert (plan.input_px, plan.batch_size) == (512, 12)


def test_values_by_hand() -> None:
    # Encoder: 2 x (4 x 64 + 8 x 16 + 8 x 4) = 832; decoder: (3 x 4 + 1) x 64 + (3 x 8 + 1) x 16 = 1,232.
    assert feature_values(8, (4, 8, 8), 1) == 2064


@pytest.mark.parametrize(("px", "expected"), [(100, 112), (128, 128), (300, 320), (20, 20), (21, 24), (500, 512)])
def test_sides_are_rounded_up_to_a_multiple_of_their_halvings(px: int, expected: int) -> None:
    assert padded(px) == expected


@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(5, 10**5), st.integers(1, 4))
def test_every_plan_fits_in_memory_and_is_valid(height: int, width: int, images: int, structures: int) -> None:
    plan = plan_for(height, width, images, structures)
    assert feature_values(plan.input_px, plan.features, structures) <= 85_000_000
    assert 4 <= plan.input_px // 2 ** (len(plan.strides) - 1) < 8
    assert plan.batch_size >= 2
    assert plan.batch_size == 2 or plan.batch_size * plan.input_px**2 <= 0.05 * images * height * width * 1.5
    assert Plan.from_dict(plan.to_dict()) == plan


def test_few_images_give_small_batches() -> None:
    # 5 % of 100 images of 256 px are 5 images.
    assert plan_at(256, 1, pixels=100 * 256**2).batch_size == 5
    assert plan_at(256, 1, pixels=10 * 256**2).batch_size == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": 3}, "unknown key 'colour' in plan"),
        ({"input_px": "32"}, "plan.input_px: expected int, got '32'"),
        ({"input_px": 32.0}, "plan.input_px: expected int, got 32.0"),
        ({"features": 4}, "plan.features: expected list, got 4"),
        ({"input_px": 36}, "input_px 36 cannot be reduced 8 times; a multiple of 8, as 40"),
        ({"features": [4, 6]}, r"plan.features is \[4, 6\]; it must be a list of 3 or more"),
        ({"features": [4, 6, 8]}, "of the same length; make the plan with `fedfms plan`"),
        ({"strides": [2, 2, 2, 1]}, "the first stride must be 1"),
        ({"kernels": [3, 3, 3, 2]}, "kernels must be odd"),
        ({"features": [4, 6, 8, 0]}, "plan.features.3 is 0; it must be above 0"),
    ],
)
def test_an_invalid_plan_is_rejected(change: dict[str, Any], says: str) -> None:
    with pytest.raises(StudyError, match=says):
        Plan.from_dict({**SMALL, **change})


def test_a_network_follows_its_plan_with_deep_supervision() -> None:
    spec = ModelSpec(backbone="nnunet", input_px=32)
    model = build_model(spec, 2, adapters=False, seed=0, plan=SMALL)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.train()(images).shape == (3, 2, 2, 32, 32)  # four stages, all but the two lowest
    assert torch.equal(model(images)[:, 0], model.eval()(images))
    assert model.get_parameter("net.bottleneck.conv2.conv.weight").shape == (8, 8, 3, 3)
    lower = model.train()(images)[:, 1]
    assert torch.equal(lower[..., ::2, ::2], lower[..., 1::2, 1::2])  # half the resolution, upsampled
    with pytest.raises(StudyError, match="the plan is for 32 px, the study has 64"):
        build_model(ModelSpec(backbone="nnunet", input_px=64), 2, adapters=False, seed=0, plan=SMALL)


def test_each_image_is_normalised_separately() -> None:
    model = build_model(ModelSpec(backbone="nnunet", input_px=32), 1, adapters=False, seed=0, plan=SMALL)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scaled = model.prefix(images)
    torch.testing.assert_close(scaled.mean((2, 3)), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.var((2, 3), correction=0), torch.ones(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.prefix(0.3 * images + 0.1), scaled, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.prefix(torch.full((1, 3, 32, 32), 0.5)), torch.zeros(1, 3, 32, 32))
