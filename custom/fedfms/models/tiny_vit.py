"""TinyViT image encoder, 5M parameters (Wu et al., ECCV 2022), as in MobileSAM and LiteMedSAM.

State names and tensor layouts are those of their checkpoints.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedfms.errors import StudyError
from fedfms.models import segment_anything as sa
from fedfms.models.adapters import BlockAdapters
from fedfms.models.attention import attend_with_table, to_autocast_dtype, uses_cpu_path
from fedfms.models.base import ImageEncoder
from fedfms.models.mbconv import ConvBN, MBConv, PatchEmbed, PatchMerging
from fedfms.models.windows import from_windows, needs_padding, to_windows
from fedfms.study import ModelSpec

DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)  # tokens per side; the first stage is convolutional and has no windows
MLP_RATIO = 4
OUT_DIM = 256
STEMS = {"mobile_sam": 16, "lite_medsam": 4}  # input pixels per cell of the embedding grid
LITE_MAX_PX = 256  # largest input for which `auto` is LiteMedSAM's stem: the size at which its weights were trained


def stem_of(spec: ModelSpec) -> str:
    """`mobile_sam` or `lite_medsam`: the study's choice, with `auto` resolved by input size."""
    if spec.stem != "auto":
        return spec.stem
    return "lite_medsam" if spec.input_px <= LITE_MAX_PX else "mobile_sam"


class Attention(nn.Module):
    """Norm and attention within a window, with a learnt bias for each |dx|, |dy|."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def bias(self) -> Tensor:
        """(heads, N, N), N = window x window tokens in raster order."""
        # Not cached: it is cheap, and an index cached in inference mode cannot be saved for the backward pass.
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
        """All windows of a grid (B, H, W, dim) -> the same shape; norm, qkv and proj of the real tokens only."""
        side, grid = (self.window, self.window), (x.shape[0], x.shape[1], x.shape[2])
        # A padded token is zero before the norm, so it enters attention as the norm's bias.
        padding = self._by_head(self.norm.bias) if needs_padding(grid[1:], side) else None
        attended = attend_with_table(to_windows(self._by_head(self.norm(x)), padding, side), self.bias())
        projected: Tensor = self.proj(from_windows(attended, grid, side, self.heads))
        return projected

    def _by_head(self, normed: Tensor) -> Tensor:
        """q, k, v (..., 3, heads, c) of normalised tokens (..., dim)."""
        # Ordered head by head, not q of all heads first as in SAM's ViT.
        return cast(Tensor, self.qkv(normed).unflatten(-1, (self.heads, 3, -1)).transpose(-2, -3))


class Mlp(nn.Module):
    """fc2(gelu(fc1(.))) of (..., dim); the block applies `norm`, as its adapter has the same normalised input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * MLP_RATIO)
        self.fc2 = nn.Linear(dim * MLP_RATIO, dim)

    def forward(self, normed: Tensor) -> Tensor:
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
        attended = self._attend_plain(x) if plain or not uses_cpu_path(x.device) else self.attn.on_grid(x)
        x = x + (attended if adapters is None else adapters.adapt_attention(attended))
        x = self.local_conv(x.permute(0, 3, 1, 2), plain=plain).permute(0, 2, 3, 1)
        normed = self.mlp.norm(x)
        normed = normed if plain else to_autocast_dtype(normed)  # converted once for MLP and adapter
        x = x + self.mlp(normed)
        return x if adapters is None else adapters.add_beside_mlp(x, normed)

    def _attend_plain(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1:]
        # Padding before attention's norm, as in TinyViT's training: a padded token enters as the norm's bias.
        windows, padded = sa.window_partition(x, self.window)
        attended = self.attn(windows.reshape(-1, self.window * self.window, dim))
        out: Tensor = sa.window_unpartition(attended, self.window, padded, (height, width))
        return out


class Stage(nn.Module):
    """Blocks of one width, then merging to the next width; names are the checkpoint's."""

    def __init__(self, index: int) -> None:
        super().__init__()
        dim = DIMS[index]
        self.blocks = nn.ModuleList(
            TinyViTBlock(dim, HEADS[index], WINDOWS[index]) if index else MBConv(dim) for _ in range(DEPTHS[index])
        )
        last = index == len(DIMS) - 1
        # Merging to 320 channels does not shrink the grid.
        self.downsample = None if last else PatchMerging(dim, DIMS[index + 1], 1 if index == len(DIMS) - 2 else 2)

    def merge(self, x: Tensor, *, plain: bool) -> Tensor:
        """(B, dim, H, W) -> the input of the next stage."""
        return x if self.downsample is None else self.downsample(x, plain)


class TinyViTEncoder(ImageEncoder):
    """Images (B, 3, S, S) -> embedding (B, 256, grid, grid), grid = S / 16 or, with LiteMedSAM's stem, S / 4.

    Raises:
        StudyError: the input size is not a multiple of the stem's pixels for each grid cell.
    """

    # The ImageNet classifier in MobileSAM's file.
    ignored_pretrained: ClassVar[tuple[str, ...]] = ("norm_head.", "head.")
    prefix_is_costly = True  # the convolutional stage has the highest resolution

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
        """Stem, convolutional stage and the first blocks: (B, 3, S, S) -> (B, C, H, W), before any block
        (B, 128, 2 x grid, 2 x grid).
        """
        plain, x = self.uses_plain_code(), images
        if uses_cpu_path(images.device) and not plain:  # CPU convolutions would convert every input to channels last
            x = images.contiguous(memory_format=torch.channels_last)
        x = self.run_block(self.patch_embed, x, plain)
        first = cast(Stage, self.layers[0])
        for block in first.blocks:
            x = self.run_block(block, x, plain)
        x = self._blocks(first.merge(x, plain=plain), 0, self.cut)
        return self.neck(x) if self.is_whole_prefix else x

    def rest(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 256, grid, grid)."""
        if self.is_whole_prefix:
            return features
        out: Tensor = self.neck(self._blocks(features, self.cut, len(self.block_dims)))
        return out

    def _blocks(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The transformer blocks start..stop-1, and the merging after each stage that they end: channels first."""
        plain, first = self.uses_plain_code(), 0
        for layer in list(self.layers)[1:]:
            stage = cast(Stage, layer)
            last = first + len(stage.blocks)
            if indices := range(max(first, start), min(last, stop)):
                x = x.permute(0, 2, 3, 1)
                # A cached prefix is channels first, and sums with it would preserve that layout.
                x = x.contiguous() if uses_cpu_path(x.device) and not plain else x
                for index in indices:
                    if index - self.cut not in self.skipped:
                        x = self.run_block(stage.blocks[index - first], x, self.block_adapters(index), plain)
                x = x.permute(0, 3, 1, 2)
                x = stage.merge(x, plain=plain) if stop >= last else x
            first = last
        return x

    def prefix_modules(self) -> tuple[str, ...]:
        """Stem, convolutional stage and the first blocks with their merging; the neck, if there is no other block."""
        names, first = ["patch_embed", "layers.0"], 0
        for number, layer in enumerate(list(self.layers)[1:], start=1):
            count = len(cast(Stage, layer).blocks)
            names += [f"layers.{number}.blocks.{i}" for i in range(count) if first + i < self.cut]
            names += [f"layers.{number}.downsample"] if first + count <= self.cut else []
            first += count
        return (*names, *(("neck",) if self.is_whole_prefix else ()))
