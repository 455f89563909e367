"""Partitions the tokens of a grid into windows, separated by head, and back, with one copy each way."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Side = tuple[int, int]  # height and width of a window in tokens


def to_windows(tokens: Tensor, padding: Tensor | None, side: Side) -> Tensor:
    """q, k, v of a grid (B, H, W, 3, heads, c), dense in any order -> (3, M, h x w, c), M = B x windows x heads.

    Windows of `side` = (h, w) are in row order. Beyond the lower and right edges of the grid, q, k, v are `padding`
    (3, heads, c); it may be None if the windows fit (`needs_padding`).

    Raises:
        ValueError: the windows do not fit, and there is no padding.
    """
    out: Tensor = _ToWindows.apply(tokens, padding, side)
    return out


def from_windows(windows: Tensor, grid: tuple[int, int, int], side: Side, heads: int) -> Tensor:
    """(M, h x w, c), in the order of `to_windows` -> (B, H, W, heads x c) for a grid (B, H, W), without padding."""
    out: Tensor = _FromWindows.apply(windows, grid, side, heads)
    return out


def needs_padding(grid: Sequence[int], side: Side) -> bool:
    """Whether windows of `side` extend beyond a grid of (height, width) tokens."""
    return bool(grid[0] % side[0] or grid[1] % side[1])


class _ToWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, padding: Tensor | None, side: Side) -> Tensor:
        ctx.side, ctx.shape, ctx.strides = side, tokens.shape, tokens.stride()
        windows = tokens.new_empty(_shape(tokens, side))
        if needs_padding(tokens.shape[1:3], side):
            if padding is None:
                raise ValueError("windows that extend beyond the grid need a padding")
            windows.copy_(padding[:, None, None, None, :, None, None])
        for in_grid, in_windows in _pairs(tokens, windows):
            in_windows.copy_(in_grid)
        return windows.flatten(5, 6).flatten(1, 4)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        out = grad.new_empty_strided(ctx.shape, ctx.strides)  # the tokens' layout, so autograd needs no copy
        windows = grad.reshape(_shape(out, ctx.side))
        for in_grid, in_windows in _pairs(out, windows):
            in_grid.copy_(in_windows)
        return out, _padding_sum(windows, out.shape[1:3]) if ctx.needs_input_grad[1] else None, None


class _FromWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: Tensor, grid: tuple[int, int, int], side: Side, heads: int) -> Tensor:
        ctx.side, ctx.heads = side, heads
        out = windows.new_empty(*grid, 1, heads, windows.shape[-1])
        for in_grid, in_windows in _pairs(out, windows.reshape(_shape(out, side))):
            in_grid.copy_(in_windows)
        return out.flatten(3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        grid = grad.unflatten(3, (1, ctx.heads, -1))
        padded = needs_padding(grid.shape[1:3], ctx.side)
        windows = (grad.new_zeros if padded else grad.new_empty)(_shape(grid, ctx.side))
        for in_grid, in_windows in _pairs(grid, windows):
            in_windows.copy_(in_grid)
        return windows.flatten(5, 6).flatten(1, 4)[0], None, None, None


def _shape(grid: Tensor, side: Side) -> tuple[int, ...]:
    """(parts, B, rows, columns, heads, h, w, c) of the windows of a grid (B, H, W, parts, heads, c)."""
    batch, height, width, parts, heads, size = grid.shape
    return parts, batch, -(-height // side[0]), -(-width // side[1]), heads, *side, size


def _pairs(grid: Tensor, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the same tokens in a grid and in its windows, both in the windows' order of dimensions."""
    for rows, window_rows, h in _segments(grid.shape[1], windows.shape[5]):
        for columns, window_columns, w in _segments(grid.shape[2], windows.shape[6]):
            view = grid[:, rows, columns].unflatten(2, (-1, w)).unflatten(1, (-1, h))
            yield view.permute(5, 0, 1, 3, 6, 2, 4, 7), windows[:, :, window_rows, window_columns, :, :h, :w]


def _padding_sum(windows: Tensor, grid: Sequence[int]) -> Tensor:
    """The sum over all padded tokens of the windows, (3, heads, c)."""
    height, width = grid[0] % windows.shape[5], grid[1] % windows.shape[6]  # real tokens of a padded window
    right = [windows[:, :, :, -1:, :, :, width:]] if width else []
    below = [windows[:, :, -1:, : -1 if width else None, :, height:]] if height else []
    corner = [windows[:, :, -1:, -1:, :, height:, :width]] if height and width else []
    dtype = torch.promote_types(windows.dtype, torch.float32)
    total = windows.new_zeros(windows.shape[0], windows.shape[4], windows.shape[7], dtype=dtype)
    for strip in right + below + corner:
        total += strip.sum(dim=(1, 2, 3, 5, 6), dtype=dtype)
    return total.to(windows.dtype)


def _segments(length: int, side: int) -> Iterator[tuple[slice, slice, int]]:
    """(tokens, windows, tokens per window) along a side: first of the complete windows, then of the padded one."""
    whole = length // side
    if whole:
        yield slice(0, whole * side), slice(0, whole), side
    if length % side:
        yield slice(whole * side, length), slice(whole, whole + 1), length % side
