"""A grid's tokens in windows, each head by itself, and back: one copy each way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Side = tuple[int, int]  # tokens of a window, down and along


def to_windows(tokens: Tensor, padding: Tensor | None, side: Side) -> Tensor:
    """q, k, v of a grid (B, H, W, 3, heads, c), dense in any order -> (3, M, h x w, c), M = B x windows x heads.

    Windows of `side` = (h, w) go by rows; those at the lower and right edges may reach over the grid, where q, k, v are
    `padding`, (3, heads, c); None will do where none `reach_over`.

    Raises:
        ValueError: they do, and there is no padding.
    """
    out: Tensor = _ToWindows.apply(tokens, padding, side)
    return out


def from_windows(windows: Tensor, grid: tuple[int, int, int], side: Side, heads: int) -> Tensor:
    """(M, h x w, c), as `to_windows` orders them -> (B, H, W, heads x c) of a grid (B, H, W), without padding."""
    out: Tensor = _FromWindows.apply(windows, grid, side, heads)
    return out


def reach_over(grid: Sequence[int], side: Side) -> bool:
    """Whether windows of `side` reach over a grid of (height, width) tokens."""
    return bool(grid[0] % side[0] or grid[1] % side[1])


class _ToWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, padding: Tensor | None, side: Side) -> Tensor:
        ctx.side, ctx.shape, ctx.strides = side, tokens.shape, tokens.stride()
        windows = tokens.new_empty(_shape(tokens, side))
        if reach_over(tokens.shape[1:3], side):
            if padding is None:
                raise ValueError("windows that reach over the grid need a padding")
            windows.copy_(padding[:, None, None, None, :, None, None])
        for of_grid, of_windows in _pairs(tokens, windows):
            of_windows.copy_(of_grid)
        return windows.flatten(5, 6).flatten(1, 4)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        out = grad.new_empty_strided(ctx.shape, ctx.strides)  # as the tokens lie: whoever made them takes it uncopied
        windows = grad.reshape(_shape(out, ctx.side))
        for of_grid, of_windows in _pairs(out, windows):
            of_grid.copy_(of_windows)
        return out, _of_padding(windows, out.shape[1:3]) if ctx.needs_input_grad[1] else None, None


class _FromWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: Tensor, grid: tuple[int, int, int], side: Side, heads: int) -> Tensor:
        ctx.side, ctx.heads = side, heads
        out = windows.new_empty(*grid, 1, heads, windows.shape[-1])
        for of_grid, of_windows in _pairs(out, windows.reshape(_shape(out, side))):
            of_grid.copy_(of_windows)
        return out.flatten(3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        grid = grad.unflatten(3, (1, ctx.heads, -1))
        padded = reach_over(grid.shape[1:3], ctx.side)
        windows = (grad.new_zeros if padded else grad.new_empty)(_shape(grid, ctx.side))
        for of_grid, of_windows in _pairs(grid, windows):
            of_windows.copy_(of_grid)
        return windows.flatten(5, 6).flatten(1, 4)[0], None, None, None


def _shape(grid: Tensor, side: Side) -> tuple[int, ...]:
    """(parts, B, rows, columns, heads, h, w, c) of the windows of a grid (B, H, W, parts, heads, c)."""
    batch, height, width, parts, heads, size = grid.shape
    return parts, batch, -(-height // side[0]), -(-width // side[1]), heads, *side, size


def _pairs(grid: Tensor, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What lies at the same places of a grid and of its windows, both in the windows' order of dimensions."""
    for rows, down, h in _stretches(grid.shape[1], windows.shape[5]):
        for columns, along, w in _stretches(grid.shape[2], windows.shape[6]):
            some = grid[:, rows, columns].unflatten(2, (-1, w)).unflatten(1, (-1, h))
            yield some.permute(5, 0, 1, 3, 6, 2, 4, 7), windows[:, :, down, along, :, :h, :w]


def _of_padding(windows: Tensor, grid: Sequence[int]) -> Tensor:
    """The sum over all places of the windows that lie beyond the grid, (3, heads, c)."""
    tall, broad = grid[0] % windows.shape[5], grid[1] % windows.shape[6]  # real places of a window that reaches over
    right = [windows[:, :, :, -1:, :, :, broad:]] if broad else []
    below = [windows[:, :, -1:, : -1 if broad else None, :, tall:]] if tall else []
    corner = [windows[:, :, -1:, -1:, :, tall:, :broad]] if tall and broad else []
    dtype = torch.promote_types(windows.dtype, torch.float32)
    total = windows.new_zeros(windows.shape[0], windows.shape[4], windows.shape[7], dtype=dtype)
    for strip in right + below + corner:
        total += strip.sum(dim=(1, 2, 3, 5, 6), dtype=dtype)
    return total.to(windows.dtype)


def _stretches(length: int, side: int) -> Iterator[tuple[slice, slice, int]]:
    """Whole windows along a side, then the one that reaches over: places, windows, and places in each window."""
    whole = length // side
    if whole:
        yield slice(0, whole * side), slice(0, whole), side
    if length % side:
        yield slice(whole * side, length), slice(whole, whole + 1), length % side
