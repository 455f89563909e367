"""A grid's tokens in windows, each head by itself, and back: one copy each way, and none of what pads the windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Side = tuple[int, int]  # tokens of a window, down and along


def to_windows(tokens: Tensor, padding: Tensor, side: Side, heads: int) -> Tensor:
    """q, k, v of a grid (B, H, W, 3 x heads x c) -> (3, M, h x w, c), M = B x windows x heads, `side` = (h, w).

    Windows go by rows; those at the lower and right edges may reach over the grid, where q, k, v are `padding`,
    (3 x heads x c).
    """
    out: Tensor = _ToWindows.apply(tokens, padding, side, heads)
    return out


def from_windows(windows: Tensor, grid: tuple[int, int, int], side: Side, heads: int) -> Tensor:
    """(M, h x w, c), as `to_windows` orders them -> (B, H, W, heads x c) of a grid (B, H, W), without padding."""
    out: Tensor = _FromWindows.apply(windows, grid, side, heads)
    return out


class _ToWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, padding: Tensor, side: Side, heads: int) -> Tensor:
        ctx.shape, ctx.side, ctx.heads = tokens.shape, side, heads
        windows, pairs = _windows(tokens, 3, side, heads)
        if _reaches_over(tokens, side):
            windows.copy_(padding.view(3, 1, 1, 1, heads, 1, 1, -1))
        for of_grid, of_windows in pairs(tokens):
            of_windows.copy_(of_grid)
        return windows.flatten(5, 6).flatten(1, 4)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        out = grad.new_empty(ctx.shape)
        windows, pairs = _windows(out, 3, ctx.side, ctx.heads, grad)
        for of_grid, of_windows in pairs(out):
            of_grid.copy_(of_windows)
        if not (ctx.needs_input_grad[1] and _reaches_over(out, ctx.side)):
            return out, None, None, None
        dtype = torch.promote_types(grad.dtype, torch.float32)
        whole = windows.sum(dim=(1, 2, 3, 5, 6), dtype=dtype).flatten()
        return out, (whole - out.sum(dim=(0, 1, 2), dtype=dtype)).to(grad.dtype), None, None


class _FromWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: Tensor, grid: tuple[int, int, int], side: Side, heads: int) -> Tensor:
        ctx.side, ctx.heads = side, heads
        out = windows.new_empty(*grid, heads * windows.shape[-1])
        _, pairs = _windows(out, 1, side, heads, windows[None])
        for of_grid, of_windows in pairs(out):
            of_grid.copy_(of_windows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        windows, pairs = _windows(grad, 1, ctx.side, ctx.heads)
        if _reaches_over(grad, ctx.side):
            windows.zero_()
        for of_grid, of_windows in pairs(grad):
            of_windows.copy_(of_grid)
        return windows.flatten(5, 6).flatten(1, 4)[0], None, None, None


def _windows(like: Tensor, parts: int, side: Side, heads: int, given: Tensor | None = None) -> tuple[Tensor, Any]:
    """Windows (parts, B, rows, columns, heads, h, w, c) of a grid `like` (B, H, W, ...), new or `given`, and what
    pairs the places of a grid with theirs, both in the windows' order of dimensions.
    """
    batch, height, width, channels = like.shape
    (tall, broad), size = side, channels // (parts * heads)
    shape = (parts, batch, -(-height // tall), -(-width // broad), heads, tall, broad, size)
    windows = like.new_empty(shape) if given is None else given.reshape(shape)

    def pairs(grid: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, down, h in _stretches(height, tall):
            for columns, along, w in _stretches(width, broad):
                some = grid[:, rows, columns].unflatten(3, (parts, heads, size))
                some = some.unflatten(2, (-1, w)).unflatten(1, (-1, h))
                yield some.permute(5, 0, 1, 3, 6, 2, 4, 7), windows[:, :, down, along, :, :h, :w]

    return windows, pairs


def _reaches_over(grid: Tensor, side: Side) -> bool:
    return bool(grid.shape[1] % side[0] or grid.shape[2] % side[1])


def _stretches(length: int, side: int) -> Iterator[tuple[slice, slice, int]]:
    """Whole windows along a side, then the one that reaches over: places, windows, and places in each window."""
    whole = length // side
    if whole:
        yield slice(0, whole * side), slice(0, whole), side
    if length % side:
        yield slice(whole * side, length), slice(whole, whole + 1), length % side
