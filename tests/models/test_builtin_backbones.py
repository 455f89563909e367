"""Figures and errors of the built-in backbones; `fedfms.testing` has the contract of every backbone."""

from dataclasses import replace

import pytest
import torch

from fedfms.errors import CheckpointError, StudyError
from fedfms.models import build_model, meta_model
from fedfms.study import ModelSpec
from fedfms.testing.models import (
    ADAPTED,
    case_of,
    images,
)

TINY = ModelSpec(backbone="vit_tiny", input_px=64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "input_px", "mask_px", "blocks"),
    [
        ("vit_b", 1024, 256, 12), ("vit_l", 1024, 256, 24), ("vit_h", 1024, 256, 32), ("tiny_vit", 1024, 256, 10),
        ("vit_tiny", 128, 64, 4), ("unet", 256, 256, 0), ("unet_tiny", 256, 64, 0), ("nnunet", 256, 256, 0),
        ("nnunet_tiny", 256, 64, 0),
    ],
)  # fmt: skip
def test_known_sizes_of_masks_and_numbers_of_blocks(name: str, input_px: int, mask_px: int, blocks: int) -> None:
    model = meta_model(ModelSpec(backbone=name, input_px=input_px), 2, adapters=True).eval()
    assert model(torch.empty(2, 3, input_px, input_px, device="meta")).shape == (2, 2, mask_px, mask_px)
    assert len(model.adapters_in_order()) == 2 * blocks


@pytest.mark.parametrize(
    ("backbone", "adapters", "roles", "expected"),
    [
        ("vit_b", True, ADAPTED, 11_026_666),  # FedMSA, C = 2: 7,100,928 + 4,058,350 - 132,612
        # FedSAM, C = 2: 89,670,912 + 4,058,350 - 132,612
        ("vit_b", False, ("encoder", "decoder", "head"), 93_596_650),
        ("vit_b", True, ("adapter",), 7_100_928),
        ("vit_b", True, ("decoder", "unused"), 4_058_340),
        ("vit_b", True, ("unused",), 132_612),
        ("vit_l", True, ("encoder",), 308_278_272),
        ("vit_h", True, ("encoder",), 637_026_048),
    ],
)
def test_parameter_counts(backbone: str, adapters: bool, roles: tuple[str, ...], expected: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec(backbone=backbone), 2, adapters=adapters, seed=0)
    of = model.roles()
    assert sum(p.numel() for name, p in model.named_parameters() if of[name] in roles) == expected


def test_unknown_blocks_cannot_be_skipped() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny has no blocks \[-1, 4\]"):
        case_of("vit_tiny").build(adapter_init="reference").skip_blocks([-1, 2, 4])


@torch.no_grad()
def test_sam_normalisation_is_sams() -> None:
    plain = build_model(TINY, 1, adapters=False, seed=0)
    model = build_model(replace(TINY, normalise="sam"), 1, adapters=False, seed=0)
    x = images(TINY)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    by_hand = (x * 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(model(x), plain(by_hand), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "n_structures", "message"),
    [
        (ModelSpec(backbone="resnet"), 1, "unknown backbone 'resnet'; known ones: "),
        (ModelSpec(backbone="vit_tiny", input_px=100), 1, "100 is not a multiple of the patch size 8"),
        (ModelSpec(backbone="tiny_vit", input_px=250), 1, "input_px 250 is not a multiple of 4"),
        (ModelSpec(backbone="tiny_vit", input_px=300), 1, "a multiple of 16, a grid cell of stem mobile_sam"),
        (ModelSpec(backbone="unet", input_px=100), 1, "input_px 100 does not fit unet; a multiple of 16, 32 or more"),
        (ModelSpec(backbone="unet", input_px=16), 1, "input_px 16 does not fit unet"),
        (ModelSpec(backbone="nnunet", input_px=100), 1, "100 cannot be reduced 16 times; a multiple of 16, as 112"),
        (ModelSpec(backbone="vit_tiny", input_px=64, head="token"), 2, "there are 2 structures; use 'conv'"),
    ],
)
def test_study_errors(spec: ModelSpec, n_structures: int, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        build_model(spec, n_structures, adapters=False, seed=0)
    assert message in str(caught.value)


def test_a_named_checkpoint_must_be_given() -> None:
    spec = replace(TINY, checkpoint="weights.pth")
    with pytest.raises(CheckpointError, match=r"^weights.pth: the study starts from this file, but"):
        build_model(spec, 1, adapters=False, seed=0)
