"""Attention with an additive bias, exact, without its N x N matrix.

SAM's bias is decomposed: a score is scale x q.k + rel_h[q, row of k] + rel_w[q, column of k]; TinyViT's is a table of
its own for each head. Two ways, by device:

- CPU: blocks of queries against all keys, so few that they stay in caches. Nothing of a block is kept: the backward
  pass works the scores out anew, as FlashAttention does; whole rows need no log-sum-exp for that. All is float32 for
  bfloat16 too where the processor has no instructions for its products. Where it has, blocks are bfloat16, but for the
  scores of the backward pass: by bfloat16's, gradients of the tables are twice as far off.
- Others: rel_h and rel_w become further dimensions of q, and k says by ones which of them are its own, so that the
  fused kernels of `scaled_dot_product_attention` apply.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedfms.machine import multiplies_bfloat16

# Scores that a thread works on at a time: 4 MiB of float32, of which there are two in forward and four in backward.
# Measured between 2^16 and 2^22 at N = 196 and 4096, where the cores share 32 MiB of cache.
BLOCK = 1 << 20
_MANY = 1024  # tokens from which on scores in bfloat16 are faster; a bias that is added by short rows is not
_ALIGNED = 8  # kernels on cards take head dimensions in multiples of this


def attend(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """softmax(scores) v for M heads of an H x W grid of tokens, N = H x W: -> (M, N, c).

    Args:
        qkv: (3, M, N, c), float32 or lower.
        rel_h: (H, H, c), for each row of a query and row of a key; the score is its product with the unscaled q.
        rel_w: (W, W, c), likewise for columns.
    """
    rel_h, rel_w = rel_h.to(qkv.dtype), rel_w.to(qkv.dtype)
    return _on_cpu(qkv, rel_h, rel_w) if on_processor(qkv.device) else folded(qkv, rel_h, rel_w)


def attend_by_table(qkv: Tensor, table: Tensor) -> Tensor:
    """softmax(scale q.k + table) v for windows of h heads each: -> (M, N, c), M = windows x h; where `on_processor`.

    Args:
        qkv: (3, M, N, c), float32 or lower; a window's heads lie together.
        table: (h, N, N).
    """
    return _on_cpu(qkv, table.to(qkv.dtype))


def on_processor(device: torch.device) -> bool:
    """Whether the work is the processor's: attention goes by blocks, convolutions channels last. So it is on meta."""
    return device.type in ("cpu", "meta")


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which operations take their inputs' precision, whatever surrounds it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def as_autocast_takes(x: Tensor) -> Tensor:
    """A tensor in the precision in which autocast gives it to a linear layer; without autocast, as it is."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


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


def _on_cpu(qkv: Tensor, *bias: Tensor) -> Tensor:
    out: Tensor = _Blocks.apply(qkv, *bias)
    return out


class _Blocks(torch.autograd.Function):
    """Attention on the CPU; keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, *bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, *bias)
        out = torch.empty_like(qkv[0])
        with without_autocast(qkv.device):
            scores = _Scores(qkv, *bias)
            for heads in scores.heads():
                value = qkv[2, heads].to(scores.dtype)
                for queries, probabilities in scores.blocks(heads):
                    out[heads, queries] = torch.bmm(probabilities, value)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *bias = ctx.saved_tensors
        with without_autocast(qkv.device):
            return _gradients(_Scores(qkv, *bias, backward=True, train_bias=any(ctx.needs_input_grad[1:])), grad)


class _Bias(abc.ABC):
    """What is added to the scores before softmax, and where its gradient goes."""

    @abc.abstractmethod
    def put(self, scores: Tensor, heads: slice, queries: slice) -> None:
        """Write the bias of a block into `scores` (h, n, N)."""

    @abc.abstractmethod
    def take(self, d_scores: Tensor, heads: slice, queries: slice) -> None:
        """Add the gradient of a block's scores up, (h, n, N)."""

    @abc.abstractmethod
    def gradients(self, d_q: Tensor) -> tuple[Tensor | None, ...]:
        """Of the tensors that the bias is made of, where they train; what it adds to q's (M, N, c) is added there."""


class _Decomposed(_Bias):
    """rel_h (H, H, c) and rel_w (W, W, c) times q (M, N, c); the gradients are two sums over the same block."""

    def __init__(self, q: Tensor, rel_h: Tensor, rel_w: Tensor, *, train: bool) -> None:
        self._q, self._rel_h, self._rel_w, self._train = q, rel_h, rel_w, train
        self._sides = (rel_h.shape[0], rel_w.shape[0])
        self._by_row, self._by_column = _biases(q, rel_h, rel_w)
        self._d_row: Tensor | None = None
        self._d_column: Tensor | None = None

    def put(self, scores: Tensor, heads: slice, queries: slice) -> None:
        by_row, by_column = self._by_row[heads, queries, :, None], self._by_column[heads, queries, None]
        torch.add(by_row, by_column, out=scores.unflatten(2, self._sides))

    def take(self, d_scores: Tensor, heads: slice, queries: slice) -> None:
        if self._d_row is None or self._d_column is None:
            self._d_row, self._d_column = torch.empty_like(self._by_row), torch.empty_like(self._by_column)
        on_grid = d_scores.unflatten(2, self._sides)
        self._d_row[heads, queries], self._d_column[heads, queries] = on_grid.sum(dim=3), on_grid.sum(dim=2)

    def gradients(self, d_q: Tensor) -> tuple[Tensor | None, ...]:
        assert self._d_row is not None and self._d_column is not None
        by_row, by_column = self._d_row.unflatten(1, self._sides), self._d_column.unflatten(1, self._sides)
        d_q += torch.einsum("mhwk,hkc->mhwc", by_row, self._rel_h).flatten(1, 2)
        d_q += torch.einsum("mhwk,wkc->mhwc", by_column, self._rel_w).flatten(1, 2)
        if not self._train:
            return None, None
        q = self._q.unflatten(1, self._sides)
        return torch.einsum("mhwk,mhwc->hkc", by_row, q), torch.einsum("mhwk,mhwc->wkc", by_column, q)


class _Table(_Bias):
    """A table (h, N, N), the same in every window."""

    def __init__(self, table: Tensor, *, train: bool) -> None:
        self._table = table
        self._gradient = torch.zeros_like(table) if train else None

    def _own(self, heads: slice) -> Tensor:
        return torch.arange(heads.start, heads.stop, device=self._table.device) % len(self._table)

    def put(self, scores: Tensor, heads: slice, queries: slice) -> None:
        torch.index_select(self._table[:, queries], 0, self._own(heads), out=scores)

    def take(self, d_scores: Tensor, heads: slice, queries: slice) -> None:
        if self._gradient is not None:
            self._gradient[:, queries].index_add_(0, self._own(heads), d_scores.to(self._gradient.dtype))

    def gradients(self, d_q: Tensor) -> tuple[Tensor | None, ...]:
        return (self._gradient,)


class _Scores:
    """The attention probabilities of some heads, a block of queries at a time, in buffers used again and again."""

    def __init__(self, qkv: Tensor, *bias: Tensor, backward: bool = False, train_bias: bool = False) -> None:
        _, self._count, tokens, _ = qkv.shape
        quick = qkv.dtype == torch.bfloat16 and multiplies_bfloat16()
        self.wide = torch.promote_types(qkv.dtype, torch.float32)  # of sums over blocks
        self.dtype = qkv.dtype if quick else self.wide  # of a block of probabilities or gradients
        self._scored = self.wide if backward or tokens < _MANY else self.dtype
        self.qkv = qkv
        self.scale = qkv.shape[-1] ** -0.5
        made_of = [tensor.to(self._scored) for tensor in bias]
        self.bias: _Bias
        if len(made_of) == 1:
            self.bias = _Table(*made_of, train=train_bias)
        else:
            self.bias = _Decomposed(qkv[0].to(self._scored), *made_of, train=train_bias)
        self._at_once = min(self._count, max(1, BLOCK // tokens**2) * torch.get_num_threads())
        self._rows = min(tokens, max(1, BLOCK // tokens))
        self._scores, self._probabilities = self.buffer(self._scored), self.buffer(self._scored)
        self._narrow = None if self._scored == self.dtype else self.buffer(self.dtype)

    def buffer(self, dtype: torch.dtype) -> Tensor:
        """Room for a block, for `part`."""
        size = self._at_once * self._rows * self.qkv.shape[2]
        return torch.empty(size, dtype=dtype, device=self.qkv.device)

    @staticmethod
    def part(buffer: Tensor, like: Tensor) -> Tensor:
        """The beginning of a buffer in the shape of a block."""
        return buffer[: like.numel()].view(like.shape)

    def heads(self) -> Iterator[slice]:
        """The heads to work on together."""
        for start in range(0, self._count, self._at_once):
            yield slice(start, min(start + self._at_once, self._count))

    def blocks(self, heads: slice) -> Iterator[tuple[slice, Tensor]]:
        """Queries and their probabilities (h, n, N) in `dtype`, which last until the next block."""
        tokens = self.qkv.shape[2]
        q, keys = self.qkv[:2, heads].to(self._scored)
        keys = keys.transpose(1, 2).contiguous()  # oneDNN would copy them for each block
        for start in range(0, tokens, self._rows):
            queries = slice(start, min(start + self._rows, tokens))
            some = q[:, queries]
            scores = self._scores[: some.shape[0] * some.shape[1] * tokens].view(*some.shape[:2], tokens)
            self.bias.put(scores, heads, queries)
            scores.baddbmm_(some, keys, alpha=self.scale)
            found = torch.softmax(scores, dim=-1, out=self.part(self._probabilities, scores))
            yield queries, found if self._narrow is None else self.part(self._narrow, found).copy_(found)


def _biases(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """rel_h . q and rel_w . q, (M, N, H) and (M, N, W), of q (M, N, c)."""
    grid = q.unflatten(1, (rel_h.shape[0], rel_w.shape[0]))
    by_row, by_column = torch.einsum("mhwc,hkc->mhwk", grid, rel_h), torch.einsum("mhwc,wkc->mhwk", grid, rel_w)
    return by_row.flatten(1, 2), by_column.flatten(1, 2)


def _gradients(scores: _Scores, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of qkv, and of what the bias is made of where it trains."""
    dtype, qkv = scores.dtype, scores.qkv
    out = torch.empty_like(qkv)
    d_probabilities, d_scores = scores.buffer(dtype), scores.buffer(dtype)
    for heads in scores.heads():
        q, key, value = qkv[:, heads].to(dtype)
        value = value.transpose(1, 2).contiguous()
        d_key, d_value = (torch.zeros(key.shape, dtype=scores.wide, device=key.device) for _ in range(2))
        for queries, p in scores.blocks(heads):
            g = grad[heads, queries].to(dtype)
            _add_product(d_value, p.transpose(1, 2), g)
            d_p = torch.bmm(g, value, out=scores.part(d_probabilities, p))
            d_s = scores.part(d_scores, p)
            torch.ops.aten._softmax_backward_data.out(d_p, p, -1, dtype, grad_input=d_s)
            scores.bias.take(d_s, heads, queries)
            out[0, heads, queries] = torch.bmm(d_s, key).mul_(scores.scale)
            _add_product(d_key, d_s.transpose(1, 2), q[:, queries])
        out[1, heads], out[2, heads] = d_key.mul_(scores.scale), d_value
    of_inputs = scores.bias.gradients(out[0])
    return out, *(None if tensor is None else tensor.to(out.dtype) for tensor in of_inputs)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, of many; blocks of lower precision are rounded, their sum is float32."""
    if left.dtype == total.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)
