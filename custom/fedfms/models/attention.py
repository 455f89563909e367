"""Attention with SAM's decomposed relative positions, exact, without its N x N matrix.

A score is scale x q.k + rel_h[q, row of k] + rel_w[q, column of k]. Two ways, by device:

- CPU: blocks of queries against all keys, as many as a core's cache takes. Nothing of a block is kept: the backward
  pass works the scores out anew, as FlashAttention does; whole rows need no log-sum-exp for that. In float32 for
  lower precisions too, whose products of this shape are no faster there, often far slower.
- Others: rel_h and rel_w become further dimensions of q, and k says by ones which of them are its own, so that the
  fused kernels of `scaled_dot_product_attention` apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Scores that a thread works on at a time: 2 MiB of float32. Measured between 2^16 and 2^20 at N = 196 and 4096.
BLOCK = 1 << 19
_ALIGNED = 8  # kernels on cards take head dimensions in multiples of this


def attend(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """softmax(scores) v for M heads of an H x W grid of tokens, N = H x W: -> (M, N, c).

    Args:
        qkv: (3, M, N, c), float32 or lower.
        rel_h: (H, H, c), for each row of a query and row of a key; the score is its product with the unscaled q.
        rel_w: (W, W, c), likewise for columns.
    """
    rel_h, rel_w = rel_h.to(qkv.dtype), rel_w.to(qkv.dtype)
    return (_in_blocks if qkv.device.type in ("cpu", "meta") else folded)(qkv, rel_h, rel_w)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which operations take their inputs' precision, whatever surrounds it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def folded(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """As `attend`, by `scaled_dot_product_attention` on q' = [scale q, rel_h, rel_w] and k' = [k, one-hots]."""
    q, k, v = qkv.unbind()
    rows, columns = rel_h.shape[0], rel_w.shape[0]
    bias_h, bias_w = _biases(q, rel_h, rel_w)
    own_row = torch.eye(rows, dtype=k.dtype, device=k.device).repeat_interleave(columns, dim=0)
    own_column = torch.eye(columns, dtype=k.dtype, device=k.device).repeat(rows, 1)
    hot = torch.cat([own_row, own_column], dim=1).expand(k.shape[0], -1, -1)
    longer = torch.cat([q * q.shape[-1] ** -0.5, bias_h, bias_w], dim=-1), torch.cat([k, hot], dim=-1)
    queries, keys = (F.pad(part, (0, -part.shape[-1] % _ALIGNED))[None] for part in longer)
    return F.scaled_dot_product_attention(queries, keys, v[None], scale=1.0)[0]


def _in_blocks(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    out: Tensor = _Blocks.apply(qkv, rel_h, rel_w)
    return out


class _Blocks(torch.autograd.Function):
    """`attend` on the CPU; keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, rel_h, rel_w)
        out = torch.empty_like(qkv[0])
        with without_autocast(qkv.device):
            scores = _Scores(qkv, rel_h, rel_w)
            for heads in scores.heads():
                value = qkv[2, heads].to(scores.dtype)
                for queries, _, probabilities in scores.blocks(heads):
                    out[heads, queries] = torch.bmm(probabilities, value)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        qkv, rel_h, rel_w = ctx.saved_tensors
        with without_autocast(qkv.device):
            return _gradients(_Scores(qkv, rel_h, rel_w), grad, tables=any(ctx.needs_input_grad[1:]))


class _Scores:
    """The attention probabilities of some heads, a block of queries at a time, in buffers used again and again."""

    def __init__(self, qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> None:
        self.dtype = torch.promote_types(qkv.dtype, torch.float32)
        self.qkv, self.rel_h, self.rel_w = qkv, rel_h.to(self.dtype), rel_w.to(self.dtype)
        self.scale = qkv.shape[-1] ** -0.5
        self.bias_h, self.bias_w = _biases(qkv[0].to(self.dtype), self.rel_h, self.rel_w)
        _, self._count, tokens, _ = qkv.shape
        self._at_once = min(self._count, max(1, BLOCK // tokens**2) * torch.get_num_threads())
        self._rows = min(tokens, max(1, BLOCK // tokens))
        self._scores, self._probabilities = (self.buffer() for _ in range(2))

    def buffer(self) -> Tensor:
        """Room for a block, for `part`."""
        size = self._at_once * self._rows * self.qkv.shape[2]
        return torch.empty(size, dtype=self.dtype, device=self.qkv.device)

    @staticmethod
    def part(buffer: Tensor, like: Tensor) -> Tensor:
        """The beginning of a buffer in the shape of a block."""
        return buffer[: like.numel()].view(like.shape)

    def heads(self) -> Iterator[slice]:
        """The heads to work on together."""
        for start in range(0, self._count, self._at_once):
            yield slice(start, min(start + self._at_once, self._count))

    def blocks(self, heads: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Queries, their q (h, n, c) and their probabilities (h, n, N), which last until the next block."""
        tokens = self.qkv.shape[2]
        keys = self.qkv[1, heads].to(self.dtype).transpose(1, 2)
        for start in range(0, tokens, self._rows):
            queries = slice(start, min(start + self._rows, tokens))
            q = self.qkv[0, heads, queries].to(self.dtype)
            bias_h, bias_w = self.bias_h[heads, queries], self.bias_w[heads, queries]
            shape = (*q.shape[:2], bias_h.shape[-1], bias_w.shape[-1])
            scores = self._scores[: q.shape[0] * q.shape[1] * tokens].view(shape)
            torch.add(bias_h[..., None], bias_w[..., None, :], out=scores)
            scores = scores.flatten(2)
            torch.baddbmm(scores, q, keys, alpha=self.scale, out=scores)
            yield queries, q, torch.softmax(scores, dim=-1, out=self.part(self._probabilities, scores))


def _biases(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """rel_h . q and rel_w . q, (M, N, H) and (M, N, W), of q (M, N, c)."""
    grid = q.unflatten(1, (rel_h.shape[0], rel_w.shape[0]))
    by_row, by_column = torch.einsum("mhwc,hkc->mhwk", grid, rel_h), torch.einsum("mhwc,wkc->mhwk", grid, rel_w)
    return by_row.flatten(1, 2), by_column.flatten(1, 2)


def _gradients(scores: _Scores, grad: Tensor, *, tables: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of qkv, rel_h and rel_w; the last two where wanted. The biases' own are two sums over the same block."""
    dtype, qkv = scores.dtype, scores.qkv
    out = torch.zeros_like(qkv)
    d_bias_h, d_bias_w = torch.empty_like(scores.bias_h), torch.empty_like(scores.bias_w)
    d_probabilities, d_scores = scores.buffer(), scores.buffer()
    for heads in scores.heads():
        key, value = qkv[1, heads].to(dtype), qkv[2, heads].to(dtype)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        for queries, q, p in scores.blocks(heads):
            g = grad[heads, queries].to(dtype)
            torch.baddbmm(d_value, p.transpose(1, 2), g, out=d_value)
            d_p = torch.bmm(g, value.transpose(1, 2), out=scores.part(d_probabilities, p))
            d_s = scores.part(d_scores, p)
            torch.ops.aten._softmax_backward_data.out(d_p, p, -1, dtype, grad_input=d_s)
            out[0, heads, queries] = torch.bmm(d_s, key).mul_(scores.scale)
            torch.baddbmm(d_key, d_s.transpose(1, 2), q, alpha=scores.scale, out=d_key)
            on_grid = d_s.unflatten(2, (scores.rel_h.shape[0], scores.rel_w.shape[0]))
            d_bias_h[heads, queries], d_bias_w[heads, queries] = on_grid.sum(dim=3), on_grid.sum(dim=2)
        out[1, heads], out[2, heads] = d_key, d_value
    return _through_biases(scores, out, d_bias_h, d_bias_w, tables=tables)


def _through_biases(
    scores: _Scores, out: Tensor, d_bias_h: Tensor, d_bias_w: Tensor, *, tables: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the biases' gradients add to q's, and the tables' gradients."""
    sides = (scores.rel_h.shape[0], scores.rel_w.shape[0])
    by_row, by_column = d_bias_h.unflatten(1, sides), d_bias_w.unflatten(1, sides)
    out[0] += torch.einsum("mhwk,hkc->mhwc", by_row, scores.rel_h).flatten(1, 2)
    out[0] += torch.einsum("mhwk,wkc->mhwc", by_column, scores.rel_w).flatten(1, 2)
    if not tables:
        return out, None, None
    q, dtype = scores.qkv[0].to(scores.dtype).unflatten(1, sides), out.dtype
    d_h, d_w = torch.einsum("mhwk,mhwc->hkc", by_row, q), torch.einsum("mhwk,mhwc->wkc", by_column, q)
    return out, d_h.to(dtype), d_w.to(dtype)
