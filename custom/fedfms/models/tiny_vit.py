"""TinyViT image encoder, 5M (Wu et al., ECCV 2022), as in MobileSAM and LiteMedSAM.

State names and the layout of every tensor are those of their checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedfms.errors import StudyError
from fedfms.models import segment_anything as sa
from fedfms.models.adapters import BlockAdapters
from fedfms.models.attention import attend_by_table, in_blocks
from fedfms.models.base import ImageEncoder
from fedfms.study import ModelSpec

DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)  # tokens a side; the first stage is convolutional and has none
MBCONV_EXPAND = 4
MLP_RATIO = 4
OUT_DIM = 256
STEMS = {"mobile_sam": 16, "lite_medsam": 4}  # input pixels for each cell of the embedding grid
LITE_MAX_PX = 256  # `auto` takes LiteMedSAM's stem up to here: the size its weights were trained at


def stem_of(spec: ModelSpec) -> str:
    """`mobile_sam` or `lite_medsam`: the study's choice, with `auto` resolved by input size."""
    if spec.stem != "auto":
        return spec.stem
    return "lite_medsam" if spec.input_px <= LITE_MAX_PX else "mobile_sam"


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by its running statistics, always, in training too: (B, C, H, W) -> the same shape.

    Statistics of a batch of a few slices are noise, and they would make an image's features depend on its
    neighbours, so that no prefix could be cached. Running statistics that move are worse: buffers are never
    shared, so every site would drift away to an encoder of its own under adapters that are averaged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class ConvBN(nn.Sequential):
    """Convolution without bias, batch normalisation: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False)
        # Fixed statistics do not rescale, so random weights must keep the variance by themselves.
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        super().__init__(OrderedDict(c=conv, bn=FixedBatchNorm2d(out_dim)))


class PatchEmbed(nn.Module):
    """The stem: (B, 3, S, S) -> (B, 64, s, s), s = S / 4 (`mobile_sam`) or S (`lite_medsam`)."""

    def __init__(self, stem: str) -> None:
        super().__init__()
        kernel, stride = (3, 2) if stem == "mobile_sam" else (1, 1)
        self.seq = nn.Sequential(
            ConvBN(3, DIMS[0] // 2, kernel, stride), nn.GELU(), ConvBN(DIMS[0] // 2, DIMS[0], kernel, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 64, s, s)."""
        out: Tensor = self.seq(x)
        return out


class MBConv(nn.Module):
    """Inverted bottleneck with a skip connection: (B, dim, H, W) -> the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim * MBCONV_EXPAND
        self.conv1 = ConvBN(dim, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> the same shape; the last activation comes after the sum."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class PatchMerging(nn.Module):
    """Between stages: (B, in, H, W) -> (B, out, H / 2, W / 2); the last, to 320 channels, keeps the grid."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_dim, out_dim)
        self.conv2 = ConvBN(out_dim, out_dim, 3, stride=1 if out_dim == DIMS[-1] else 2, groups=out_dim)
        self.conv3 = ConvBN(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class Attention(nn.Module):
    """Attention within a window, its own norm first, with a learnt bias for each |dx|, |dy|."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def bias(self) -> Tensor:
        """(heads, N, N), N = window x window tokens in raster order."""
        # Made anew each time: cheap, and a cached index from inference mode could not be saved for backward.
        cells = torch.arange(self.window, device=self.attention_biases.device)
        apart = (cells[:, None] - cells[None, :]).abs()
        index = apart[:, None, :, None] * self.window + apart[None, :, None, :]
        tokens = self.window * self.window
        return self.attention_biases[:, index.reshape(tokens, tokens)]

    def forward(self, x: Tensor, *, plain: bool) -> Tensor:
        """Windows (M, N, dim) -> the same shape; `plain`: by torch's own attention, as on a card."""
        windows, tokens, dim = x.shape
        # Head by head, each q, k, v of its own: not q of all heads first, as in SAM's ViT.
        by_head = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        if plain or not in_blocks(x.device):
            q, k, v = by_head.unbind()
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias().to(q.dtype)[None])
        else:
            out = attend_by_table(by_head.flatten(1, 2), self.bias()).unflatten(0, (windows, self.heads))
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(windows, tokens, dim))
        return projected


class Mlp(nn.Module):
    """fc2(gelu(fc1(.))); `norm` is applied by the block: an adapter takes the same normalised input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * MLP_RATIO)
        self.fc2 = nn.Linear(dim * MLP_RATIO, dim)

    def forward(self, normed: Tensor) -> Tensor:
        """Normalised tokens (..., dim) -> (..., dim)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(normed)))
        return out


class TinyViTBlock(nn.Module):
    """Window attention, depthwise convolution over the whole grid, MLP: (B, H, W, dim) -> the same shape."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(dim, heads, window)
        self.mlp = Mlp(dim)
        self.local_conv = ConvBN(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor, adapters: BlockAdapters | None, plain: bool) -> Tensor:
        """(B, H, W, dim) -> the same shape."""
        attended = self._attend(x, plain=plain)
        x = x + (attended if adapters is None else adapters.adapt_attention(attended))
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        normed = self.mlp.norm(x)
        x = x + self.mlp(normed)
        return x if adapters is None else adapters.add_beside_mlp(x, normed)

    def _attend(self, x: Tensor, *, plain: bool) -> Tensor:
        height, width, dim = x.shape[1:]
        # Padded before attention's norm, as TinyViT was trained: a padded token enters as the norm's bias.
        windows, padded = sa.window_partition(x, self.window)
        attended = self.attn(windows.reshape(-1, self.window * self.window, dim), plain=plain)
        out: Tensor = sa.window_unpartition(attended, self.window, padded, (height, width))
        return out


class Stage(nn.Module):
    """Blocks of one width, then the merging to the next one's; names are the checkpoint's."""

    def __init__(self, index: int) -> None:
        super().__init__()
        dim = DIMS[index]
        self.blocks = nn.ModuleList(
            TinyViTBlock(dim, HEADS[index], WINDOWS[index]) if index else MBConv(dim) for _ in range(DEPTHS[index])
        )
        last = index == len(DIMS) - 1
        self.downsample = None if last else PatchMerging(dim, DIMS[index + 1])

    def merge(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> what the next stage takes."""
        return x if self.downsample is None else self.downsample(x)


class TinyViTEncoder(ImageEncoder):
    """Images (B, 3, S, S) -> embedding (B, 256, grid, grid), grid = S / 16 or, with LiteMedSAM's stem, S / 4.

    Raises:
        StudyError: the input size is not a multiple of the stem's pixels for each grid cell.
    """

    # The classifier that MobileSAM's file still carries from ImageNet.
    ignored_pretrained: ClassVar[tuple[str, ...]] = ("norm_head.", "head.")
    prefix_is_costly = True  # the convolutional stage works at the highest resolution

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        stem = stem_of(spec)
        if spec.input_px % STEMS[stem]:
            raise StudyError(
                f"input_px {spec.input_px} is not a multiple of {STEMS[stem]}, a grid cell of stem {stem}",
                where="model", do=f"choose a multiple of {STEMS[stem]}",
            )  # fmt: skip
        self.patch_embed = PatchEmbed(stem)
        self.layers = nn.ModuleList(Stage(index) for index in range(len(DIMS)))
        self.neck = nn.Sequential(
            nn.Conv2d(DIMS[-1], OUT_DIM, 1, bias=False), sa.LayerNorm2d(OUT_DIM),
            nn.Conv2d(OUT_DIM, OUT_DIM, 3, padding=1, bias=False), sa.LayerNorm2d(OUT_DIM),
        )  # fmt: skip
        self.adapters = nn.ModuleList()
        self.grid = spec.input_px // STEMS[stem]
        self.block_dims = tuple(dim for dim, depth in zip(DIMS[1:], DEPTHS[1:], strict=True) for _ in range(depth))

    def prefix(self, images: Tensor) -> Tensor:
        """Stem and convolutional stage: (B, 3, S, S) -> (B, 128, 2 x grid, 2 x grid)."""
        x = self.checkpointed(self.patch_embed, images)
        first = cast(Stage, self.layers[0])
        for block in first.blocks:
            x = self.checkpointed(block, x)
        return first.merge(x)

    def rest(self, features: Tensor) -> Tensor:
        """(B, 128, 2 x grid, 2 x grid) -> (B, 256, grid, grid)."""
        x, done = features, 0
        plain = self.plain_attention or torch.jit.is_tracing()  # an exported network is of torch's own operations
        for layer in list(self.layers)[1:]:
            stage = cast(Stage, layer)
            x = x.permute(0, 2, 3, 1)
            for block in stage.blocks:
                adapters = cast(BlockAdapters, self.adapters[done]) if self.adapters else None
                x = x if done in self.skipped else self.checkpointed(block, x, adapters, plain)
                done += 1
            x = stage.merge(x.permute(0, 3, 1, 2))
        out: Tensor = self.neck(x)
        return out

    def prefix_modules(self) -> tuple[str, ...]:
        """Stem and convolutional stage."""
        return ("patch_embed", "layers.0")
