"""Windows of a grid, heads first, against segment-anything's partition; gradients, including the padding's."""

import pytest
import torch

from fedfms.models import segment_anything as sa
from fedfms.models.windows import from_windows, to_windows

HEADS, SIZE = 2, 3


def _split(channels: torch.Tensor, heads_first: bool) -> torch.Tensor:
    """(..., 3 x heads x c) -> (..., 3, heads, c), from SAM's order or, heads first, TinyViT's."""
    if heads_first:
        return channels.unflatten(-1, (HEADS, 3, SIZE)).transpose(-2, -3)
    return channels.unflatten(-1, (3, HEADS, SIZE))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 4), (5, 7), (3, 9), (1, 1)])
@pytest.mark.parametrize("side", [4, 2])
@pytest.mark.parametrize("heads_first", [False, True], ids=["parts, heads", "heads, parts"])
def test_there_and_back(height: int, width: int, side: int, heads_first: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, height, width, 3 * HEADS * SIZE, generator=draw, dtype=torch.float64, requires_grad=True)
    padding = torch.randn(3 * HEADS * SIZE, generator=draw, dtype=torch.float64, requires_grad=True)

    def theirs(tokens: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole = padding.expand(2, height + -height % side, width + -width % side, -1).clone()
        whole[:, :height, :width] = tokens
        windows, padded = sa.window_partition(whole, side)
        by_head = _split(windows.flatten(1, 2), heads_first).permute(2, 0, 3, 1, 4).flatten(1, 2)
        values = by_head[2].view(-1, HEADS, side, side, SIZE).permute(0, 2, 3, 1, 4).flatten(3)
        return by_head, sa.window_unpartition(values, side, padded, (height, width))

    def ours(tokens: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        by_head = to_windows(_split(tokens, heads_first), _split(padding, heads_first), (side, side))
        return by_head, from_windows(by_head[2], (2, height, width), (side, side), HEADS)

    outcomes = []
    for way in (theirs, ours):
        windows, back = way(tokens, padding)
        weights = torch.linspace(0.5, 2, windows.numel(), dtype=torch.float64).view(windows.shape)
        loss = (weights * windows).sum() + (back * back).sum()
        outcomes.append((windows, back, *torch.autograd.grad(loss, (tokens, padding), allow_unused=True)))
    for name, one, other in zip(("windows", "back", "tokens", "padding"), *outcomes, strict=True):
        other = torch.zeros_like(one) if other is None else other  # no padding, no gradient
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10, msg=name)


def test_windows_beyond_the_grid_need_a_padding() -> None:
    with pytest.raises(ValueError, match="padding"):
        to_windows(torch.zeros(1, 3, 4, 3, HEADS, SIZE), None, (2, 2))


def test_a_grid_of_one_oblong_window() -> None:
    tokens = torch.randn(1, 2, 5, 3 * HEADS * SIZE)
    by_head = to_windows(_split(tokens, heads_first=False), None, (2, 5))
    assert by_head.shape == (3, HEADS, 10, SIZE)
    assert torch.equal(from_windows(by_head[0], (1, 2, 5), (2, 5), HEADS), tokens[..., : HEADS * SIZE])
