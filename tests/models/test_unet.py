"""The U-Net's size, and the resizing of its logits to the masks' size."""

import pytest
import torch

from fedfms.models import build_model
from fedfms.models.conv import mask_size, to_mask_size
from fedfms.study import ModelSpec


@pytest.mark.parametrize(
    ("input_px", "most", "expected"),
    [(1024, 256, 256), (256, 256, 256), (320, 256, 160), (128, 64, 64), (64, 64, 64), (272, 256, 136)],
)
def test_the_mask_size_divides_the_input_size(input_px: int, most: int, expected: int) -> None:
    assert mask_size(input_px, most) == expected


def test_the_logit_of_a_mask_pixel_is_the_mean_of_its_cell() -> None:
    logits = torch.arange(32.0).view(1, 2, 4, 4)
    # The first cell holds 0, 1, 4, 5: mean 2.5; the last of the second channel 26, 27, 30, 31: 28.5.
    by_hand = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]], [[18.5, 20.5], [26.5, 28.5]]]])
    assert torch.equal(to_mask_size(logits, 2), by_hand)
    assert torch.equal(to_mask_size(logits[:, None], 2), by_hand[:, None])
    assert to_mask_size(logits, 4) is logits


def _by_hand(c: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and buffer values of a U-Net with one structure, from the channels of its five levels."""

    def two_convolutions(inward: int, out: int) -> int:
        return 9 * inward * out + 9 * out * out + 2 * (2 * out)  # no biases; batch norm's gain and offset, twice

    down = two_convolutions(3, c[0]) + sum(two_convolutions(c[i], c[i + 1]) for i in range(4))
    # A transposed convolution (2 x 2, with bias) halves the channels, except the last; the skip is concatenated.
    halved = [(c[i + 1], c[i + 1] // 2 if i else c[1]) for i in range(4)]
    up = sum(4 * inward * out + out + two_convolutions(c[i] + out, c[i]) for i, (inward, out) in enumerate(halved))
    norms = 2 * sum(c) + 2 * sum(c[:4])  # channels with batch norm: two norms per level, down and up; 18 norms
    return down + up + c[0] + 1, 2 * norms + 18


@pytest.mark.parametrize(
    ("backbone", "channels", "parameters"),
    [("unet", (64, 128, 256, 512, 1024), 31_107_329), ("unet_tiny", (8, 16, 32, 64, 128), 487_649)],
)
def test_sizes_by_hand(backbone: str, channels: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec(backbone=backbone, input_px=256), 1, adapters=False, seed=0)
    sizes = sum(p.numel() for p in model.parameters()), sum(b.numel() for b in model.buffers())
    assert sizes == _by_hand(channels)
    assert sizes[0] == parameters
