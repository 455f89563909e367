"""SAM's image encoder (ViT) from segment-anything's modules, with adapters, for any input size."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from fedfms.errors import StudyError
from fedfms.models import segment_anything as sa
from fedfms.models.adapters import BlockAdapters
from fedfms.models.attention import attend, to_autocast_dtype
from fedfms.models.base import ImageEncoder
from fedfms.models.windows import from_windows, needs_padding, to_windows
from fedfms.study import ModelSpec


@dataclass(frozen=True)
class ViTShape:
    """Sizes of a ViT; those of SAM are from segment-anything's build_sam.py."""

    embed_dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    patch_px: int = 16
    window: int = 14  # tokens per side
    out_dim: int = 256
    random_positions: bool = False  # SAM's code initialises positions with zeros, for a checkpoint to replace


class ViTEncoder(ImageEncoder):
    """Images (B, 3, S, S) -> embedding (B, out_dim, S / patch_px, S / patch_px).

    State names are those of SAM's checkpoints, and blocks are segment-anything's modules. `fedfms.models.attention`
    computes them with less memory and time; `plain_attention` selects their own code.

    Raises:
        StudyError: the patch size does not divide the input size.
    """

    def __init__(self, shape: ViTShape, spec: ModelSpec) -> None:
        super().__init__()
        if spec.input_px % shape.patch_px:
            raise StudyError(
                f"input_px {spec.input_px} is not a multiple of the patch size {shape.patch_px} px",
                where="model", do=f"choose a multiple of {shape.patch_px}",
            )  # fmt: skip
        plain = sa.ImageEncoderViT(
            img_size=spec.input_px, patch_size=shape.patch_px, embed_dim=shape.embed_dim, depth=shape.depth,
            num_heads=shape.heads, mlp_ratio=4, out_chans=shape.out_dim, qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=shape.window,
            global_attn_indexes=shape.global_blocks,
        )  # fmt: skip
        self.patch_embed, self.pos_embed = plain.patch_embed, plain.pos_embed
        self.blocks, self.neck = plain.blocks, plain.neck
        self.adapters = nn.ModuleList()
        self.grid = spec.input_px // shape.patch_px
        self.block_dims = (shape.embed_dim,) * shape.depth
        self._pad_first = spec.window_pad == "reference"
        if shape.random_positions:
            for name, table in self.named_parameters():
                if name == "pos_embed" or "rel_pos" in name:
                    nn.init.trunc_normal_(table, std=0.02)

    def prefix(self, images: Tensor) -> Tensor:
        """Patch embedding, positions and the first blocks: (B, 3, S, S) -> (B, grid, grid, embed_dim)."""
        x = self._blocks(self.patch_embed(images) + self.pos_embed, 0, self.cut)
        return self._neck(x) if self.is_whole_prefix else x

    def rest(self, features: Tensor) -> Tensor:
        """(B, grid, grid, embed_dim) -> (B, out_dim, grid, grid)."""
        return features if self.is_whole_prefix else self._neck(self._blocks(features, self.cut, len(self.blocks)))

    def _blocks(self, x: Tensor, start: int, stop: int) -> Tensor:
        for index in range(start, stop):
            if index - self.cut not in self.skipped:
                x = self.run_block(self._block, self.blocks[index], self.block_adapters(index), x)
        return x

    def _neck(self, x: Tensor) -> Tensor:
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out

    def _block(self, block: Any, adapters: BlockAdapters | None, x: Tensor) -> Tensor:
        """One block with its adapters, if any: (B, H, W, dim) -> the same shape."""
        plain = self.uses_plain_code()
        if adapters is None:  # SAM's order of padding: the paper's concerns adapted blocks only
            if plain:
                return cast(Tensor, block(x))
            x = x + _attended(block, x, pad_first=False)
            return x + block.mlp(block.norm2(x))
        x = x + adapters.adapt_attention((_attended_plain if plain else _attended)(block, x, pad_first=self._pad_first))
        normed = block.norm2(x) if plain else to_autocast_dtype(block.norm2(x))  # converted once for MLP and adapter
        return adapters.add_beside_mlp(x + block.mlp(normed), normed)

    def prefix_modules(self) -> tuple[str, ...]:
        """Patch embedding, position table and the first blocks; the neck, if there is no other block."""
        blocks = tuple(f"blocks.{index}" for index in range(self.cut))
        return ("patch_embed", "pos_embed", *blocks, *(("neck",) if self.is_whole_prefix else ()))

    def fit_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint's tensors, with position tables interpolated to this input size.

        `pos_embed` (1, g, g, dim) bicubic to the grid; `rel_pos_*` (2g - 1, head_dim) of global blocks linear to
        2 x grid - 1 rows, as segment-anything does at every step. Tables of windowed blocks are unchanged.
        """
        fitted = dict(state)
        for name, table in state.items():
            if name == "pos_embed":
                fitted[name] = _resize_grid(table, self.grid)
            elif name.endswith((".attn.rel_pos_h", ".attn.rel_pos_w")) and self._is_global(name):
                fitted[name] = _resize_rows(table, 2 * self.grid - 1)
        return fitted

    def _is_global(self, name: str) -> bool:
        index = name.split(".")[1]
        if not index.isdigit() or int(index) >= len(self.blocks):
            return False
        block: Any = self.blocks[int(index)]
        return bool(block.window_size == 0)


def _attended_plain(block: Any, x: Tensor, *, pad_first: bool) -> Tensor:
    """Attention of a block on its normalised input, by segment-anything's code: (B, H, W, dim) -> the same shape.

    `pad_first`: pad windows before norm1, as in the paper's code, so a padded token enters attention as norm1's bias.
    Otherwise after norm1, as in SAM's code, as zero.
    """
    height, width = x.shape[1:3]
    tokens = x if pad_first else block.norm1(x)
    padded = (height, width)
    if block.window_size > 0:
        tokens, padded = sa.window_partition(tokens, block.window_size)
    if pad_first:
        tokens = block.norm1(tokens)
    attended: Tensor = block.attn(tokens)
    if block.window_size > 0:
        attended = sa.window_unpartition(attended, block.window_size, padded, (height, width))
    return attended


def _attended(block: Any, x: Tensor, *, pad_first: bool) -> Tensor:
    """As `_attended_plain`, with norm1, qkv and proj of the real tokens only: all padded tokens share q, k, v."""
    attn, heads = block.attn, block.attn.num_heads
    height, width = x.shape[1:3]
    # The window of a global block is the grid, which may be oblong.
    side = (block.window_size, block.window_size) if block.window_size else (height, width)
    qkv = attn.qkv(block.norm1(x)).unflatten(3, (3, heads, -1))
    padding = None
    if needs_padding((height, width), side):
        padded = attn.qkv(block.norm1.bias) if pad_first else attn.qkv.bias
        padding = padded.to(qkv.dtype).unflatten(0, (3, heads, -1))
    tables = (sa.get_rel_pos(n, n, table) for n, table in zip(side, (attn.rel_pos_h, attn.rel_pos_w), strict=True))
    attended = attend(to_windows(qkv, padding, side), *tables)
    return cast(Tensor, attn.proj(from_windows(attended, (len(x), height, width), side, heads)))


def _resize_grid(table: Tensor, grid: int) -> Tensor:
    if table.ndim != 4 or tuple(table.shape[1:3]) == (grid, grid):
        return table
    channels_first = table.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def _resize_rows(table: Tensor, rows: int) -> Tensor:
    if table.ndim != 2 or table.shape[0] == rows:
        return table
    return F.interpolate(table.float().T[None], size=rows, mode="linear")[0].T.contiguous()
