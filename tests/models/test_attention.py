"""The fast attention against segment-anything's: outputs, every gradient, bytes stored for the backward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedfms.models import attention, build_model
from fedfms.models import segment_anything as sa
from fedfms.models.adapters import build_adapters
from fedfms.models.vit import ViTEncoder, ViTShape
from fedfms.reporting.cost.step import LiveBytes
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study
from fedfms.training.build import build_on_meta

TINY = ViTShape(embed_dim=48, depth=2, heads=4, global_blocks=(1,), patch_px=8, window=7, out_dim=16)
VIT_B = ViTShape(embed_dim=768, depth=2, heads=12, global_blocks=(1,))
ROWS, COLUMNS, HEADS, DIM = 8, 5, 3, 16


def literal(qkv: Tensor, table_h: Tensor, table_w: Tensor) -> Tensor:
    """The formula, token by token and table row by table row."""
    q, k, v = qkv.unbind()
    places = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    by_row = torch.stack([torch.stack([table_h[a[0] - b[0] + ROWS - 1] for b in places]) for a in places])
    by_column = torch.stack([torch.stack([table_w[a[1] - b[1] + COLUMNS - 1] for b in places]) for a in places])
    scores = q @ k.transpose(1, 2) / DIM**0.5 + torch.einsum("mnc,nkc->mnk", q, by_row + by_column)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("way", [attention.attend, attention.attend_fused], ids=["blocks", "fused"])
@pytest.mark.parametrize("block", [1 << 19, 40 * 40, 40 * 12, 1])  # all at once, a head, uneven blocks, a query
def test_attention_by_the_formula(way: Callable[..., Tensor], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    draw = torch.Generator().manual_seed(0)
    shapes = ((3, HEADS, ROWS * COLUMNS, DIM), (2 * ROWS - 1, DIM), (2 * COLUMNS - 1, DIM))
    inputs = [torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True) for shape in shapes]
    qkv, table_h, table_w = inputs
    ours = way(qkv, sa.get_rel_pos(ROWS, ROWS, table_h), sa.get_rel_pos(COLUMNS, COLUMNS, table_w))
    theirs = literal(*inputs)
    grad = torch.randn(theirs.shape, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    pairs = zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True)
    for mine, yours in pairs:
        torch.testing.assert_close(mine, yours, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1 << 20, 30 * 30 * 2, 30 * 7, 1])  # all at once, some heads, uneven blocks, a query
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_with_a_table(heads: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    draw = torch.Generator().manual_seed(0)
    windows, tokens = 4, 30
    qkv = torch.randn(3, windows * heads, tokens, DIM, generator=draw, dtype=torch.float64, requires_grad=True)
    table = torch.randn(heads, tokens, tokens, generator=draw, dtype=torch.float64, requires_grad=True)
    q, k, v = qkv.unflatten(1, (windows, heads)).unbind()
    theirs = ((q @ k.mT / DIM**0.5 + table).softmax(-1) @ v).flatten(0, 1)
    ours = attention.attend_with_table(qkv, table)
    grad = torch.randn(theirs.shape, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    both = (torch.autograd.grad(out, (qkv, table), grad) for out in (ours, theirs))
    for mine, yours in zip(*both, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-10, atol=1e-12)


def naive(qkv: Tensor, *bias: Tensor) -> Tensor:
    """Attention as in segment-anything under autocast: all but softmax in the inputs' precision."""
    q, k, v = qkv.unbind()
    scores = q * q.shape[-1] ** -0.5 @ k.mT
    if len(bias) == 1:
        scores = scores + bias[0]
    else:
        by_row, by_column = attention._biases(q, *bias)
        scores = (scores.unflatten(2, (ROWS, COLUMNS)) + by_row[..., None] + by_column[:, :, None]).flatten(2)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).to(v.dtype) @ v


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(("native", "tokens_from"), [(False, 1024), (True, 1024), (True, 1)])
def test_bfloat16_is_as_accurate_as_the_plain_code(
    native: bool, tokens_from: int, table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without bfloat16 instructions, on any CPU; over many blocks, whose sums are float32."""
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(attention, "_BFLOAT16_SCORES_TOKENS", tokens_from)
    monkeypatch.setattr(attention, "BLOCK", 40 * 5)
    draw = torch.Generator().manual_seed(0)
    tokens, dim = ROWS * COLUMNS, 32
    bias = ((HEADS, tokens, tokens),) if table else ((ROWS, ROWS, dim), (COLUMNS, COLUMNS, dim))
    inputs = [torch.randn(shape, generator=draw).bfloat16() for shape in ((3, HEADS, tokens, dim), *bias)]
    grad = torch.randn(HEADS, tokens, dim, generator=draw).bfloat16()

    def all_of(way: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        given = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        out = way(*given)
        return [out.detach(), *torch.autograd.grad(out, given, grad.to(dtype))]

    ours = attention.attend_with_table if table else attention.attend
    exact, near = all_of(ours, torch.float64), all_of(ours, torch.bfloat16)
    for mine, theirs, true in zip(near, all_of(naive, torch.bfloat16), exact, strict=True):
        assert mine.dtype == torch.bfloat16
        error, other = (float((found.double() - true).norm() / true.norm()) for found in (mine, theirs))
        assert error < max(8e-3, 1.25 * other)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2)])  # qkv, its tables
def test_gradients_of_some_inputs_are_those_of_all(wanted: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((3, HEADS, ROWS * COLUMNS, DIM), (ROWS, ROWS, DIM), (COLUMNS, COLUMNS, DIM))
    inputs = [torch.randn(shape, generator=draw, requires_grad=True) for shape in shapes]
    whole = torch.autograd.grad(attention.attend(*inputs).square().sum(), inputs)
    some = [tensor.detach().requires_grad_(index in wanted) for index, tensor in enumerate(inputs)]
    attention.attend(*some).square().sum().backward()
    for index, tensor in enumerate(some):
        if index in wanted:
            assert tensor.grad is not None
            assert torch.equal(tensor.grad, whole[index])
        else:
            assert tensor.grad is None


def make(shape: ViTShape, spec: ModelSpec, *, adapters: bool) -> ViTEncoder:
    """An encoder with random tables and biases."""
    torch.manual_seed(0)
    encoder = ViTEncoder(shape, spec)
    if adapters:
        encoder.adapters = build_adapters(encoder.block_dims, spec)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.ndim == 1 or "rel_pos" in name or "pos_embed" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return encoder


def outcome(encoder: ViTEncoder, features: Tensor, *, bfloat16: bool = False) -> dict[str, Tensor]:
    """The embedding and, under their names, all gradients of a random sum of it."""
    features = features.clone().requires_grad_()
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = encoder.rest(features).float()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert features.grad is not None
    grads = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    return {"": out.detach(), "input": features.grad, **grads}


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def compare(shape: ViTShape, spec: ModelSpec, *, adapters: bool, trained: str = "") -> float:
    encoder = make(shape, spec, adapters=adapters)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    features = torch.randn(1, encoder.grid, encoder.grid, shape.embed_dim, generator=torch.Generator().manual_seed(2))
    fast = outcome(encoder, features)
    encoder.plain_attention = True
    return worst(fast, outcome(encoder, features))


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("window_pad", ["sam", "reference"])
@pytest.mark.parametrize("input_px", [56, 64, 104])  # windows of 7 without padding, with padding of 6 and of 1
def test_encoder_against_the_plain_code(input_px: int, window_pad: str, adapters: bool) -> None:
    spec = ModelSpec(input_px=input_px, window_pad=window_pad, adapter_init="reference")
    assert compare(TINY, spec, adapters=adapters) < 1e-5


def test_a_table_of_another_size_is_interpolated_with_its_gradient() -> None:
    spec = ModelSpec(input_px=64)
    encoder = make(TINY, spec, adapters=False)
    for table in ("rel_pos_h", "rel_pos_w"):
        setattr(encoder.blocks[1].attn, table, torch.nn.Parameter(torch.randn(9, 12)))
    features = torch.randn(2, 8, 8, 48)
    fast = outcome(encoder, features)
    encoder.plain_attention = True
    assert worst(fast, outcome(encoder, features)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("input_px", "window_pad", "adapters", "trained"),
    [(1024, "sam", True, "adapters."), (512, "reference", True, ""), (512, "sam", False, ""), (400, "sam", True, "")],
)
def test_blocks_of_vit_b(input_px: int, window_pad: str, adapters: bool, trained: str) -> None:
    spec = ModelSpec(input_px=input_px, window_pad=window_pad, adapter_init="reference")
    assert compare(VIT_B, spec, adapters=adapters, trained=trained) < 1e-5


def test_bfloat16_is_near_float32() -> None:
    """With GELU: at the kink of a ReLU, rounding decides whether there is a gradient."""
    encoder = make(TINY, ModelSpec(input_px=64, adapter_act="gelu", adapter_init="reference"), adapters=True)
    features = torch.randn(2, 8, 8, 48, generator=torch.Generator().manual_seed(2))
    exact = outcome(encoder, features)
    near = outcome(encoder, features, bfloat16=True)
    encoder.plain_attention = True
    plain = outcome(encoder, features, bfloat16=True)
    concerned = [name for name in exact if name in ("", "input") or ".attn." in name]
    assert 1e-4 < worst({name: near[name] for name in concerned}, {name: exact[name] for name in concerned}) < 2e-2
    assert worst(near, exact) < 1.25 * worst(plain, exact)  # over all tensors, as much error as the plain code


@pytest.mark.slow
@pytest.mark.parametrize("spec", [ModelSpec(backbone="vit_tiny", input_px=64), ModelSpec("tiny_vit", input_px=32)])
@pytest.mark.parametrize("adapters", [False, True])
def test_gradient_checkpointing_gives_the_same_numbers(spec: ModelSpec, adapters: bool) -> None:
    model = build_model(spec, 1, adapters=adapters, seed=0)
    images, found = torch.rand(2, 3, spec.input_px, spec.input_px), []
    for checkpointing in (False, True):
        model.configure(gradient_checkpointing=checkpointing)
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        found.append((logits, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name]), name


def stored_mib(method: str, backbone: str = "vit_b", **settings: object) -> float:
    """What autograd stores in a step on one image, at 1024 px, counted on the meta device, in MiB."""
    study = Study.from_dict({
        "name": "t", "method": method, "model": {"backbone": backbone, "input_px": 1024}, "train": {"batch_size": 1},
    })  # fmt: skip
    model = build_on_meta(study, SiteSettings(**settings)).model  # type: ignore[arg-type]
    model.train(model.train_mode)
    images = torch.empty(1, 3, 1024, 1024, device="meta")
    with LiveBytes([*model.parameters(), *model.buffers(), images]) as live:
        logits = model(images)
    assert logits.requires_grad
    return live.now / 2**20


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fast", "checkpointed"), [("fedmsa", 0.34, 0.055), ("fedsam", 0.40, 0.05)])
def test_bytes_stored_for_the_backward_pass(method: str, fast: float, checkpointed: float) -> None:
    plain = stored_mib(method, attention="plain")
    assert stored_mib(method) < fast * plain
    assert stored_mib(method, gradient_checkpointing=True) < checkpointed * plain


@pytest.mark.slow
def test_bytes_stored_by_a_convolutional_stage() -> None:
    plain = stored_mib("fedsam", "tiny_vit", attention="plain")
    assert stored_mib("fedsam", "tiny_vit", gradient_checkpointing=True) < 0.2 * plain
    assert stored_mib("fedsam", "tiny_vit") < plain


def test_nothing_is_stored_before_the_first_adapter() -> None:
    encoder = make(TINY, ModelSpec(input_px=64), adapters=True).requires_grad_(False)
    encoder.adapters[1].requires_grad_(True)
    seen: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        encoder._block(encoder.blocks[0], encoder.adapters[0], torch.randn(1, 8, 8, 48))  # type: ignore[arg-type]
    assert not seen
