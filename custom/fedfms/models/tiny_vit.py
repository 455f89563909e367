"""TinyViT image encoder, 5M (Wu et al., ECCV 2022), as in MobileSAM and LiteMedSAM.

State names and the layout of every tensor are those of their checkpoints.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedfms.errors import StudyError
from fedfms.models import segment_anything as sa
from fedfms.models.adapters import BlockAdapters
from fedfms.models.attention import as_autocast_takes, attend_by_table, on_processor
from fedfms.models.base import ImageEncoder
from fedfms.models.mbconv import ConvBN, MBConv, PatchEmbed, PatchMerging
from fedfms.models.windows import from_windows, reach_over, to_windows
from fedfms.study import ModelSpec

DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)  # tokens a side; the first stage is convolutional and has none
MLP_RATIO = 4
OUT_DIM = 256
STEMS = {"mobile_sam": 16, "lite_medsam": 4}  # input pixels for each cell of the embedding grid
LITE_MAX_PX = 256  # `auto` takes LiteMedSAM's stem up to here: the size its weights were trained at


def stem_of(spec: ModelSpec) -> str:
    """`mobile_sam` or `lite_medsam`: the study's choice, with `auto` resolved by input size."""
    if spec.stem != "auto":
        return spec.stem
    return "lite_medsam" if spec.input_px <= LITE_MAX_PX else "mobile_sam"


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

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (M, N, dim) -> the same shape, by torch's own attention."""
        count, tokens, dim = windows.shape
        q, k, v = self._by_head(self.norm(windows)).permute(2, 0, 3, 1, 4).unbind()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias().to(q.dtype)[None])
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(count, tokens, dim))
        return projected

    def on_grid(self, x: Tensor) -> Tensor:
        """All windows of a grid (B, H, W, dim) -> the same shape; norm, qkv and proj on the real tokens only."""
        side, grid = (self.window, self.window), (x.shape[0], x.shape[1], x.shape[2])
        # A padded token is zero before the norm, and enters attention as the norm's bias.
        padding = self._by_head(self.norm.bias) if reach_over(grid[1:], side) else None
        attended = attend_by_table(to_windows(self._by_head(self.norm(x)), padding, side), self.bias())
        projected: Tensor = self.proj(from_windows(attended, grid, side, self.heads))
        return projected

    def _by_head(self, normed: Tensor) -> Tensor:
        """q, k, v (..., 3, heads, c) of normalised tokens (..., dim)."""
        # Head by head, each q, k, v of its own: not q of all heads first, as in SAM's ViT.
        return cast(Tensor, self.qkv(normed).unflatten(-1, (self.heads, 3, -1)).transpose(-2, -3))


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
        attended = self._attend_plain(x) if plain or not on_processor(x.device) else self.attn.on_grid(x)
        x = x + (attended if adapters is None else adapters.adapt_attention(attended))
        x = self.local_conv(x.permute(0, 3, 1, 2), plain=plain).permute(0, 2, 3, 1)
        normed = self.mlp.norm(x) if plain else as_autocast_takes(self.mlp.norm(x))  # once for both who take it
        x = x + self.mlp(normed)
        return x if adapters is None else adapters.add_beside_mlp(x, normed)

    def _attend_plain(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1:]
        # Padded before attention's norm, as TinyViT was trained: a padded token enters as the norm's bias.
        windows, padded = sa.window_partition(x, self.window)
        attended = self.attn(windows.reshape(-1, self.window * self.window, dim))
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
        # The merging to 320 channels keeps the grid.
        self.downsample = None if last else PatchMerging(dim, DIMS[index + 1], 1 if index == len(DIMS) - 2 else 2)

    def merge(self, x: Tensor, *, plain: bool) -> Tensor:
        """(B, dim, H, W) -> what the next stage takes."""
        return x if self.downsample is None else self.downsample(x, plain)


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
        self.patch_embed = PatchEmbed(DIMS[0], *((3, 2) if stem == "mobile_sam" else (1, 1)))
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
        plain = self._plain()
        # Channels last is what the processor's convolutions work in: they would bring every input to it, and back.
        x = images if plain or not on_processor(images.device) else images.contiguous(memory_format=torch.channels_last)
        x = self.checkpointed(self.patch_embed, x, plain)
        first = cast(Stage, self.layers[0])
        for block in first.blocks:
            x = self.checkpointed(block, x, plain)
        return first.merge(x, plain=plain)

    def rest(self, features: Tensor) -> Tensor:
        """(B, 128, 2 x grid, 2 x grid) -> (B, 256, grid, grid)."""
        x, done = features, 0
        plain = self._plain()
        for layer in list(self.layers)[1:]:
            stage = cast(Stage, layer)
            x = x.permute(0, 2, 3, 1)
            # Of a kept prefix channels come first, and every sum with it would keep that.
            x = x.contiguous() if on_processor(x.device) and not plain else x
            for block in stage.blocks:
                adapters = cast(BlockAdapters, self.adapters[done]) if self.adapters else None
                x = x if done in self.skipped else self.checkpointed(block, x, adapters, plain)
                done += 1
            x = stage.merge(x.permute(0, 3, 1, 2), plain=plain)
        out: Tensor = self.neck(x)
        return out

    def _plain(self) -> bool:
        return self.plain_attention or torch.jit.is_tracing()  # an exported network is of torch's own operations

    def prefix_modules(self) -> tuple[str, ...]:
        """Stem and convolutional stage."""
        return ("patch_embed", "layers.0")
