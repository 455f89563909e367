"""Exact attention with an additive bias, without storing the N x N matrix of scores.

SAM decomposes its bias: score = scale x q.k + rel_h[q, row of k] + rel_w[q, column of k]. TinyViT has a table of
biases for each head. The implementation depends on the device:

- CPU: blocks of queries against all keys, small enough for the caches. As in FlashAttention, no scores are stored: the
  backward pass recomputes them (whole rows, so it needs no log-sum-exp). bfloat16 inputs are computed in float32 on
  CPUs without bfloat16 products. On others, blocks are bfloat16, except the scores of the backward pass: recomputed in
  bfloat16, they would double the error of the tables' gradients.
- Other devices: rel_h and rel_w become additional dimensions of q, and k gets one-hot entries that select its own row
  and column, so the fused kernels of `scaled_dot_product_attention` apply.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedfms.machine import multiplies_bfloat16

# Scores per thread and block: 4 MiB of float32, with two buffers in forward and four in backward. The best of 2^16 to
# 2^22, measured at N = 196 and 4096 on cores that share 32 MiB of cache.
BLOCK = 1 << 20
_BFLOAT16_SCORES_TOKENS = 1024  # tokens from which scores in bfloat16 are faster: adding a bias to short rows is slow
_ALIGNMENT = 8  # GPU kernels need head dimensions in multiples of this


def attend(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """softmax(scores) v for M heads of an H x W grid of tokens, N = H x W: -> (M, N, c).

    Args:
        qkv: (3, M, N, c), float32 or lower.
        rel_h: (H, H, c), by row of the query and row of the key; its product with the unscaled q is added to the score.
        rel_w: (W, W, c), likewise for columns.
    """
    rel_h, rel_w = rel_h.to(qkv.dtype), rel_w.to(qkv.dtype)
    return _in_blocks(qkv, rel_h, rel_w) if uses_cpu_path(qkv.device) else attend_fused(qkv, rel_h, rel_w)


def attend_with_table(qkv: Tensor, table: Tensor) -> Tensor:
    """softmax(scale q.k + table) v for windows of h heads each: -> (M, N, c), M = windows x h; on the CPU path.

    Args:
        qkv: (3, M, N, c), float32 or lower; the heads of a window are adjacent.
        table: (h, N, N).
    """
    return _in_blocks(qkv, table.to(qkv.dtype))


def uses_cpu_path(device: torch.device) -> bool:
    """Whether attention runs in blocks and convolutions channels last: on the CPU, and on meta in its place."""
    return device.type in ("cpu", "meta")


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast: operations use the precision of their inputs."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def to_autocast_dtype(x: Tensor) -> Tensor:
    """The tensor in the precision to which autocast converts a linear layer's input; unchanged without autocast."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


def attend_fused(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """As `attend`, by `scaled_dot_product_attention` of q' = [scale q, rel_h, rel_w] and k' = [k, one-hot entries]."""
    q, k, v = qkv.unbind()
    rows, columns = rel_h.shape[0], rel_w.shape[0]
    bias_h, bias_w = _biases(q, rel_h, rel_w)
    own_row = torch.eye(rows, dtype=k.dtype, device=k.device).repeat_interleave(columns, dim=0)
    own_column = torch.eye(columns, dtype=k.dtype, device=k.device).repeat(rows, 1)
    one_hot = torch.cat([own_row, own_column], dim=1).expand(k.shape[0], -1, -1)
    extended = torch.cat([q * q.shape[-1] ** -0.5, bias_h, bias_w], dim=-1), torch.cat([k, one_hot], dim=-1)
    queries, keys = (F.pad(part, (0, -part.shape[-1] % _ALIGNMENT))[None] for part in extended)
    return F.scaled_dot_product_attention(queries, keys, v[None], scale=1.0)[0]


def _in_blocks(qkv: Tensor, *bias: Tensor) -> Tensor:
    out: Tensor = _Blocks.apply(qkv, *bias)
    return out


class _Blocks(torch.autograd.Function):
    """Attention on the CPU; stores only its inputs for the backward pass."""

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


class _Decomposed:
    """The bias of rel_h (H, H, c) and rel_w (W, W, c), times q (M, N, c)."""

    def __init__(self, q: Tensor, rel_h: Tensor, rel_w: Tensor, *, train: bool) -> None:
        self._q, self._rel_h, self._rel_w, self._train = q, rel_h, rel_w, train
        self._sides = (rel_h.shape[0], rel_w.shape[0])
        self._by_row, self._by_column = _biases(q, rel_h, rel_w)
        self._d_row: Tensor | None = None
        self._d_column: Tensor | None = None

    def write(self, scores: Tensor, heads: slice, queries: slice) -> None:
        """Write the bias of a block into `scores` (h, n, N)."""
        by_row, by_column = self._by_row[heads, queries, :, None], self._by_column[heads, queries, None]
        torch.add(by_row, by_column, out=scores.unflatten(2, self._sides))

    def accumulate(self, d_scores: Tensor, heads: slice, queries: slice) -> None:
        """Add the gradient of a block's scores (h, n, N)."""
        if self._d_row is None or self._d_column is None:
            self._d_row, self._d_column = torch.empty_like(self._by_row), torch.empty_like(self._by_column)
        on_grid = d_scores.unflatten(2, self._sides)
        self._d_row[heads, queries], self._d_column[heads, queries] = on_grid.sum(dim=3), on_grid.sum(dim=2)

    def gradients(self, d_q: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the bias's tensors (None: not trained); adds the bias's share to the gradient of q (M, N, c)."""
        assert self._d_row is not None and self._d_column is not None
        by_row, by_column = self._d_row.unflatten(1, self._sides), self._d_column.unflatten(1, self._sides)
        d_q += torch.einsum("mhwk,hkc->mhwc", by_row, self._rel_h).flatten(1, 2)
        d_q += torch.einsum("mhwk,wkc->mhwc", by_column, self._rel_w).flatten(1, 2)
        if not self._train:
            return None, None
        q = self._q.unflatten(1, self._sides)
        return torch.einsum("mhwk,mhwc->hkc", by_row, q), torch.einsum("mhwk,mhwc->wkc", by_column, q)


class _Table:
    """The bias of a table (h, N, N), the same in every window; methods as those of `_Decomposed`."""

    def __init__(self, table: Tensor, *, train: bool) -> None:
        self._table = table
        self._gradient = torch.zeros_like(table) if train else None

    def _indices(self, heads: slice) -> Tensor:
        return torch.arange(heads.start, heads.stop, device=self._table.device) % len(self._table)

    def write(self, scores: Tensor, heads: slice, queries: slice) -> None:
        torch.index_select(self._table[:, queries], 0, self._indices(heads), out=scores)

    def accumulate(self, d_scores: Tensor, heads: slice, queries: slice) -> None:
        if self._gradient is not None:
            self._gradient[:, queries].index_add_(0, self._indices(heads), d_scores.to(self._gradient.dtype))

    def gradients(self, d_q: Tensor) -> tuple[Tensor | None, ...]:
        return (self._gradient,)


class _Scores:
    """Attention probabilities of a group of heads and a block of queries at a time, in reused buffers."""

    def __init__(self, qkv: Tensor, *bias: Tensor, backward: bool = False, train_bias: bool = False) -> None:
        _, self._count, tokens, _ = qkv.shape
        native = qkv.dtype == torch.bfloat16 and multiplies_bfloat16()
        self.sum_dtype = torch.promote_types(qkv.dtype, torch.float32)  # of sums over blocks
        self.dtype = qkv.dtype if native else self.sum_dtype  # of a block of probabilities or gradients
        exact = backward or tokens < _BFLOAT16_SCORES_TOKENS
        self._score_dtype = self.sum_dtype if exact else self.dtype
        self.qkv = qkv
        self.scale = qkv.shape[-1] ** -0.5
        tensors = [tensor.to(self._score_dtype) for tensor in bias]
        self.bias: _Decomposed | _Table
        if len(tensors) == 1:
            self.bias = _Table(*tensors, train=train_bias)
        else:
            self.bias = _Decomposed(qkv[0].to(self._score_dtype), *tensors, train=train_bias)
        self._heads = min(self._count, max(1, BLOCK // tokens**2) * torch.get_num_threads())
        self._rows = min(tokens, max(1, BLOCK // tokens))
        self._scores, self._probabilities = self.buffer(self._score_dtype), self.buffer(self._score_dtype)
        self._converted = None if self._score_dtype == self.dtype else self.buffer(self.dtype)

    def buffer(self, dtype: torch.dtype) -> Tensor:
        """Memory for one block, to be used through `part`."""
        size = self._heads * self._rows * self.qkv.shape[2]
        return torch.empty(size, dtype=dtype, device=self.qkv.device)

    @staticmethod
    def part(buffer: Tensor, like: Tensor) -> Tensor:
        """The start of a buffer, in the shape of a block."""
        return buffer[: like.numel()].view(like.shape)

    def heads(self) -> Iterator[slice]:
        """Groups of heads that are computed together."""
        for start in range(0, self._count, self._heads):
            yield slice(start, min(start + self._heads, self._count))

    def blocks(self, heads: slice) -> Iterator[tuple[slice, Tensor]]:
        """Queries and their probabilities (h, n, N) in `dtype`, valid until the next block."""
        tokens = self.qkv.shape[2]
        q, keys = self.qkv[:2, heads].to(self._score_dtype)
        keys = keys.transpose(1, 2).contiguous()  # otherwise oneDNN copies them for each block
        for start in range(0, tokens, self._rows):
            queries = slice(start, min(start + self._rows, tokens))
            block = q[:, queries]
            scores = self._scores[: block.shape[0] * block.shape[1] * tokens].view(*block.shape[:2], tokens)
            self.bias.write(scores, heads, queries)
            scores.baddbmm_(block, keys, alpha=self.scale)
            p = torch.softmax(scores, dim=-1, out=self.part(self._probabilities, scores))
            yield queries, p if self._converted is None else self.part(self._converted, p).copy_(p)


def _biases(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """rel_h . q and rel_w . q, (M, N, H) and (M, N, W), of q (M, N, c)."""
    grid = q.unflatten(1, (rel_h.shape[0], rel_w.shape[0]))
    by_row, by_column = torch.einsum("mhwc,hkc->mhwk", grid, rel_h), torch.einsum("mhwc,wkc->mhwk", grid, rel_w)
    return by_row.flatten(1, 2), by_column.flatten(1, 2)


def _gradients(scores: _Scores, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of qkv and of the bias's tensors (None if these do not train)."""
    dtype, qkv = scores.dtype, scores.qkv
    out = torch.empty_like(qkv)
    d_probabilities, d_scores = scores.buffer(dtype), scores.buffer(dtype)
    for heads in scores.heads():
        q, key, value = qkv[:, heads].to(dtype)
        value = value.transpose(1, 2).contiguous()
        d_key, d_value = (torch.zeros(key.shape, dtype=scores.sum_dtype, device=key.device) for _ in range(2))
        for queries, p in scores.blocks(heads):
            g = grad[heads, queries].to(dtype)
            _add_product(d_value, p.transpose(1, 2), g)
            d_p = torch.bmm(g, value, out=scores.part(d_probabilities, p))
            d_s = scores.part(d_scores, p)
            torch.ops.aten._softmax_backward_data.out(d_p, p, -1, dtype, grad_input=d_s)
            scores.bias.accumulate(d_s, heads, queries)
            out[0, heads, queries] = torch.bmm(d_s, key).mul_(scores.scale)
            _add_product(d_key, d_s.transpose(1, 2), q[:, queries])
        out[1, heads], out[2, heads] = d_key.mul_(scores.scale), d_value
    d_bias = scores.bias.gradients(out[0])
    return out, *(None if tensor is None else tensor.to(out.dtype) for tensor in d_bias)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, batched; products of lower precision are rounded, their sum is float32."""
    if left.dtype == total.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)
