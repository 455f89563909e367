"""Encoder, decoder and position tables against segment-anything's code; padding of windows; adapters."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedfms.models import build_model
from fedfms.models import segment_anything as sa
from fedfms.models.adapters import Adapter
from fedfms.models.registry import VIT_SHAPES
from fedfms.models.sam import PromptFreeSam
from fedfms.study import ModelSpec

SPEC = ModelSpec(backbone="vit_tiny", input_px=64)  # grid 8, padded to two windows of 7 a side


def build(spec: ModelSpec, n_structures: int = 1, *, adapters: bool = False, checkpoint: Path | None = None) -> Any:
    model = build_model(spec, n_structures, adapters=adapters, seed=0, checkpoint=checkpoint)
    assert isinstance(model, PromptFreeSam)
    return model


def their_encoder(input_px: int, state: dict[str, Tensor]) -> Any:
    shape = VIT_SHAPES["vit_tiny"]
    encoder = sa.ImageEncoderViT(
        img_size=input_px, patch_size=shape.patch_px, embed_dim=shape.embed_dim, depth=shape.depth,
        num_heads=shape.heads, out_chans=shape.out_dim, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True, window_size=shape.window, global_attn_indexes=shape.global_blocks,
    )  # fmt: skip
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize("input_px", [64, 56, 128])  # with padding, without, the demo's size
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@torch.no_grad()
def test_encoder(input_px: int, adapters: bool, plain: bool) -> None:
    model = build(replace(SPEC, input_px=input_px), adapters=adapters)
    model.configure(plain_attention=plain)
    state = {n: t for n, t in model.image_encoder.state_dict().items() if not n.startswith("adapters.")}
    x = torch.rand(2, 3, input_px, input_px)
    expected = their_encoder(input_px, state)(x)
    # the fast code adds in another order
    torch.testing.assert_close(model.embed(model.prefix(x)), expected, rtol=0, atol=1e-6 if plain else 1e-5)


@pytest.mark.parametrize("n_structures", [1, 3])
@torch.no_grad()
def test_the_decoder_on_a_batch_equals_theirs_on_each_image(n_structures: int) -> None:
    model = build(SPEC, n_structures)
    embedding = torch.randn(3, 64, 8, 8)
    positions = model.prompt_encoder.pe_layer((8, 8))[None]
    nothing, zero = torch.empty(1, 0, 64), torch.zeros(1, 64, 8, 8)
    one_by_one = [model.mask_decoder.predict_masks(e[None], positions, nothing, zero)[0] for e in embedding]
    expected = torch.cat(one_by_one)  # (3, 4, 32, 32)
    if n_structures == 1:
        expected = expected[:, :1]
    else:
        weight, bias = model.head.weight[:, :, 0, 0], model.head.bias
        expected = torch.einsum("ct,bthw->bchw", weight, expected) + bias[:, None, None]
    torch.testing.assert_close(model.decode(embedding), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("input_px", [40, 72, 200])
@torch.no_grad()
def test_tables_of_another_input_size(input_px: int, tmp_path: Path) -> None:
    file = tmp_path / "other_size.pth"
    source = build(SPEC)
    torch.save(source.state_dict(), file)
    model = build(replace(SPEC, input_px=input_px), checkpoint=file)
    grid = input_px // 8
    table = source.image_encoder.pos_embed.permute(0, 3, 1, 2)
    resized = F.interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    assert torch.equal(model.image_encoder.pos_embed, resized)
    windowed, everywhere = model.image_encoder.blocks[0].attn, model.image_encoder.blocks[1].attn
    assert torch.equal(windowed.rel_pos_h, source.image_encoder.blocks[0].attn.rel_pos_h)
    assert everywhere.rel_pos_w.shape == (2 * grid - 1, 24)
    # segment-anything interpolates relative positions itself, at every step, when a table has another length
    theirs = their_encoder(64, source.image_encoder.state_dict())
    theirs.pos_embed = nn.Parameter(resized)
    x = torch.rand(1, 3, input_px, input_px)
    torch.testing.assert_close(model.embed(model.prefix(x)), theirs(x), rtol=0, atol=1e-5)
    assert model(x).shape == (1, 1, 4 * grid, 4 * grid)


@pytest.mark.parametrize(("input_px", "same"), [(56, True), (64, False)])
@torch.no_grad()
def test_window_pad(input_px: int, same: bool) -> None:
    """The two orders of padding and norm1 agree only if the window size divides the grid."""
    spec = replace(SPEC, input_px=input_px, adapter_init="reference")
    ours = build(spec, adapters=True)
    reference = build(replace(spec, window_pad="reference"), adapters=True)
    for model in (ours, reference):  # a padded token is norm1's bias in the paper's code
        for block in model.image_encoder.blocks:
            block.norm1.bias.fill_(0.3)
    x = torch.rand(1, 3, input_px, input_px)
    assert torch.allclose(ours(x), reference(x), rtol=1e-5, atol=1e-6) is same


@torch.no_grad()
def test_reference_padding_by_hand() -> None:
    model = build(replace(SPEC, window_pad="reference", adapter_init="reference"), adapters=True)
    encoder = model.image_encoder
    block, pair = encoder.blocks[0], encoder.adapters[0]
    block.norm1.bias.fill_(0.3)
    x = model.prefix(torch.rand(1, 3, 64, 64))
    windows, padded = sa.window_partition(x, 7)
    attended = block.attn(block.norm1(windows))
    attended = attended + pair.after_attention(attended)  # padding too, as in the paper's code
    y = x + sa.window_unpartition(attended, 7, padded, (8, 8))
    normed = block.norm2(y)
    y = y + block.mlp(normed) + 0.5 * pair.beside_mlp(normed)
    seen: list[Tensor] = []
    encoder.blocks[1].norm1.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    encoder.rest(x)
    # block 1 is global: its norm1 gets block 0's output unchanged
    torch.testing.assert_close(seen[0], y, rtol=1e-5, atol=1e-6)


def test_without_adapters_window_pad_changes_nothing() -> None:
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(build(SPEC)(x), build(replace(SPEC, window_pad="reference"))(x))


@torch.no_grad()
def test_the_adapter_is_that_of_the_paper() -> None:
    adapter = Adapter(8, ratio=0.25, act="gelu", init="reference")
    x = torch.randn(3, 8)
    down, up = adapter.down, adapter.up
    assert down.weight.shape == (2, 8)
    torch.testing.assert_close(adapter(x), F.gelu(x @ down.weight.T + down.bias) @ up.weight.T + up.bias)
    assert not Adapter(8, ratio=0.25, act="relu", init="zero")(x).any()
