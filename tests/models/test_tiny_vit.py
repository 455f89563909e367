"""TinyViT's parts against a slow, literal computation."""

import itertools

import pytest
import torch

from fedfms.models import build_model
from fedfms.models.adapters import build_adapters
from fedfms.models.mbconv import ConvBN, FixedBatchNorm2d
from fedfms.models.tiny_vit import Attention, TinyViTBlock, TinyViTEncoder, stem_of
from fedfms.study import ModelSpec


def _randomise(layer: ConvBN) -> None:
    for tensor in (layer.bn.weight, layer.bn.bias, layer.bn.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(layer.bn.running_var, 0.5, 2)


def literal_attention(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    """One window (N, dim), head by head, token by token."""
    side, dim = attn.window, x.shape[1]
    size = dim // attn.heads
    points = list(itertools.product(range(side), range(side)))
    qkv = attn.qkv(attn.norm(x))
    heads = []
    for head in range(attn.heads):
        q, k, v = qkv[:, head * 3 * size : (head + 1) * 3 * size].split(size, dim=1)
        bias = torch.tensor(
            [[attn.attention_biases[head, abs(a[0] - b[0]) * side + abs(a[1] - b[1])] for b in points] for a in points]
        )
        heads.append((q @ k.T / size**0.5 + bias).softmax(-1) @ v)
    return attn.proj(torch.cat(heads, dim=1))


@torch.no_grad()
def test_attention() -> None:
    attn = Attention(12, heads=3, window=3)
    torch.nn.init.normal_(attn.attention_biases)
    x = torch.randn(2, 9, 12)
    expected = torch.stack([literal_attention(attn, window) for window in x])
    torch.testing.assert_close(attn(x), expected, rtol=1e-4, atol=1e-5)


def test_fused_convolution_and_norm_with_every_gradient() -> None:
    layer = ConvBN(6, 6, kernel=3, stride=2, groups=3).double()
    _randomise(layer)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    one, other = layer(x, plain=True), layer(x, plain=False)
    torch.testing.assert_close(other, one)
    wanted = (x, *layer.parameters())
    weights = torch.randn_like(one)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), wanted) for y in (one, other)), strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("stem", "input_px"), [("lite_medsam", 12), ("lite_medsam", 28), ("mobile_sam", 48), ("mobile_sam", 224)]
)
def test_fast_and_plain_code_agree_with_every_gradient(stem: str, input_px: int, checkpointing: bool) -> None:
    """Grids smaller than a window, with and without padding; random tables, norms and biases; float64."""
    spec = ModelSpec(backbone="tiny_vit", stem=stem, input_px=input_px, adapter_init="reference")
    torch.manual_seed(0)
    encoder = TinyViTEncoder(spec)
    encoder.adapters = build_adapters(encoder.block_dims, spec)
    encoder.double()
    for module in encoder.modules():
        if isinstance(module, ConvBN):
            _randomise(module)
    for parameter in encoder.parameters():
        if parameter.ndim < 3:
            parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 3, input_px, input_px, dtype=torch.float64)
    outcomes = []
    for encoder.plain_attention in (True, False):
        encoder.gradient_checkpointing = checkpointing and not encoder.plain_attention
        out = encoder.rest(encoder.prefix(images))
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        outcomes.append((out.detach(), *torch.autograd.grad((out * weights).sum(), list(encoder.parameters()))))
    for name, plain, fast in zip(["", *dict(encoder.named_parameters())], *outcomes, strict=True):
        assert float((fast - plain).norm()) <= 1e-9 * float(plain.norm()), name


@pytest.mark.parametrize("plain", [False, True])
@torch.no_grad()
def test_windows_are_padded_before_the_norm(plain: bool) -> None:
    block = TinyViTBlock(12, heads=3, window=3)
    torch.nn.init.normal_(block.attn.norm.bias)
    x = torch.randn(1, 4, 4, 12)
    padded = torch.zeros(6, 6, 12)
    padded[:4, :4] = x[0]
    attended = torch.zeros(6, 6, 12)
    for row, column in itertools.product((0, 3), (0, 3)):
        window = padded[row : row + 3, column : column + 3].reshape(9, 12)
        attended[row : row + 3, column : column + 3] = literal_attention(block.attn, window).view(3, 3, 12)
    y = x + attended[None, :4, :4]
    y = block.local_conv(y.permute(0, 3, 1, 2), plain=True).permute(0, 2, 3, 1)  # replaces y, without a residual
    y = y + block.mlp(block.mlp.norm(y))
    torch.testing.assert_close(block(x, None, plain), y, rtol=1e-4, atol=1e-5)


def test_batch_norm_uses_running_statistics_in_training() -> None:
    norm = FixedBatchNorm2d(2).train()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(norm(x), (x - 1) / (4 + norm.eps) ** 0.5)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("input_px", "stem", "resolved", "mask_px"),
    [(256, "auto", "lite_medsam", 256), (512, "auto", "mobile_sam", 128), (20, "auto", "lite_medsam", 20),
     (240, "mobile_sam", "mobile_sam", 60), (36, "lite_medsam", "lite_medsam", 36)],
)  # fmt: skip
def test_stem_and_grid(input_px: int, stem: str, resolved: str, mask_px: int) -> None:
    spec = ModelSpec(backbone="tiny_vit", input_px=input_px, stem=stem)
    assert stem_of(spec) == resolved
    with torch.device("meta"):
        model = build_model(spec, 1, adapters=True, seed=0)
        assert model(torch.empty(1, 3, input_px, input_px)).shape == (1, 1, mask_px, mask_px)
    assert model.mask_px == mask_px
