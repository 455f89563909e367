"""What every backbone promises: shapes, roles, gradients, prefix, random values."""

from dataclasses import replace

import pytest
import torch

from fedfms.errors import CheckpointError, StudyError
from fedfms.models import FAMILIES, ROLES, build_model
from fedfms.models.sam import PromptFreeSam
from fedfms.models.tiny_vit import TinyViTEncoder
from fedfms.models.vit import ViTEncoder
from fedfms.study import ModelSpec
from tests.models.make import assert_gradients, built_by_seed, images, step

SMALL = {
    "vit_tiny": ModelSpec(backbone="vit_tiny", input_px=64),
    "vit_tiny-reference": ModelSpec(backbone="vit_tiny", input_px=64, window_pad="reference", adapter_act="gelu"),
    "tiny_vit-lite_medsam": ModelSpec(backbone="tiny_vit", input_px=32),
    "tiny_vit-mobile_sam": ModelSpec(backbone="tiny_vit", input_px=64, stem="mobile_sam", normalise="sam"),
}
SMALL_PARAMS = [pytest.param(spec, id=name) for name, spec in SMALL.items()]
WITH_VIT_B = [*SMALL_PARAMS, pytest.param(ModelSpec(input_px=64), id="vit_b", marks=pytest.mark.slow)]
TRAINED = ("adapter", "decoder", "head")


@pytest.mark.parametrize("backbone", FAMILIES["sam"])
@pytest.mark.parametrize("n_structures", [1, 2])
def test_shape_roles_and_adapters_on_meta(backbone: str, n_structures: int) -> None:
    spec = ModelSpec(backbone=backbone, input_px=128 if backbone == "vit_tiny" else 1024)
    with torch.device("meta"):
        model = build_model(spec, n_structures, adapters=True, seed=0)
        logits = model(torch.empty(2, 3, spec.input_px, spec.input_px))
    assert logits.shape == (2, n_structures, model.mask_px, model.mask_px)
    assert model.mask_px == (64 if backbone == "vit_tiny" else 256)
    assert (model.backbone, model.input_px, model.n_structures) == (backbone, spec.input_px, n_structures)
    roles = model.roles()
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert set(roles.values()) == set(ROLES) - {"extra"} - ({"head"} if n_structures == 1 else set())
    order = model.adapters_in_order()
    in_order = [name for adapter in order for name in adapter]
    assert len(in_order) == len(set(in_order))
    assert set(in_order) == {name for name, role in roles.items() if role == "adapter"}
    places = ["after_attention" in adapter[0] for adapter in order]
    assert places == [True, False] * (len(order) // 2)
    blocks = [int(adapter[0].split(".")[2]) for adapter in order]
    depth = {"vit_b": 12, "vit_l": 24, "vit_h": 32, "vit_tiny": 4, "tiny_vit": 10}[backbone]
    assert blocks == [index for index in range(depth) for _ in range(2)]


@pytest.mark.parametrize(
    ("backbone", "adapters", "roles", "expected"),
    [
        ("vit_b", True, TRAINED, 11_026_666),  # FedMSA, C = 2: 7,100,928 + 4,058,350 - 132,612
        # FedSAM, C = 2: 89,670,912 + 4,058,350 - 132,612
        ("vit_b", False, ("encoder", "decoder", "head"), 93_596_650),
        ("vit_b", True, ("adapter",), 7_100_928),
        ("vit_b", True, ("decoder", "unused"), 4_058_340),
        ("vit_b", True, ("unused",), 132_612),
        ("vit_l", True, ("encoder",), 308_278_272),
        ("vit_h", True, ("encoder",), 637_026_048),
    ],
)
def test_parameter_counts(backbone: str, adapters: bool, roles: tuple[str, ...], expected: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec(backbone=backbone), 2, adapters=adapters, seed=0)
    of = model.roles()
    assert sum(p.numel() for name, p in model.named_parameters() if of[name] in roles) == expected


@pytest.mark.parametrize("spec", SMALL_PARAMS)
@pytest.mark.parametrize("n_structures", [1, 2])
def test_adapters_decoder_and_head_all_learn(spec: ModelSpec, n_structures: int) -> None:
    model = build_model(replace(spec, adapter_init="reference"), n_structures, adapters=True, seed=0)
    step(model, spec, TRAINED)
    assert_gradients(model, TRAINED)


@pytest.mark.parametrize("spec", SMALL_PARAMS)
def test_full_sam_all_learns(spec: ModelSpec) -> None:
    model = build_model(spec, 2, adapters=False, seed=0)
    step(model, spec, ("encoder", *TRAINED, "unused"))
    assert_gradients(model, ("encoder", *TRAINED))


@pytest.mark.parametrize("spec", SMALL_PARAMS)
def test_zero_adapters_have_gradients_from_the_first_step(spec: ModelSpec) -> None:
    model = build_model(spec, 1, adapters=True, seed=0)
    step(model, spec, TRAINED)
    for name, parameter in model.named_parameters():
        if ".adapters." in name:
            assert parameter.grad is not None
            assert ".up." not in name or parameter.grad.abs().max() > 0


@pytest.mark.parametrize("spec", WITH_VIT_B)
@torch.no_grad()
def test_zero_adapters_keep_the_function(spec: ModelSpec) -> None:
    spec = replace(spec, window_pad="sam")
    plain = build_model(spec, 1, adapters=False, seed=3)
    adapted = build_model(spec, 1, adapters=True, seed=3)
    assert torch.equal(plain(images(spec)), adapted(images(spec)))


@pytest.mark.parametrize("spec", WITH_VIT_B)
@torch.no_grad()
def test_prefix_then_rest_is_forward(spec: ModelSpec) -> None:
    model = build_model(replace(spec, adapter_init="reference"), 2, adapters=True, seed=0)
    x = images(spec)
    features, logits = model.prefix(x), model(x)
    assert torch.equal(model.from_prefix(features), logits)
    state = model.state_dict()
    assert model.prefix_names() <= state.keys()
    for name, tensor in state.items():  # nothing else matters to the prefix, and all that it names does
        if name not in model.prefix_names():
            tensor.add_(1)
    assert torch.equal(model.prefix(x), features)
    for name in model.prefix_names():
        if not name.endswith("num_batches_tracked"):
            state[name].add_(0.5)
            assert not torch.equal(model.prefix(x), features), name
            state[name].sub_(0.5)


@pytest.mark.parametrize("spec", SMALL_PARAMS)
def test_nothing_is_stored_before_the_first_trained_tensor(spec: ModelSpec) -> None:
    model = build_model(spec, 1, adapters=True, seed=0)
    roles = model.roles()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(roles[name] in TRAINED)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        features = model.prefix(images(spec))
    assert features.grad_fn is None
    assert not saved


@pytest.mark.parametrize("spec", SMALL_PARAMS)
def test_random_values_depend_on_the_seed_alone(spec: ModelSpec) -> None:
    one, other = built_by_seed(spec, adapters=True)
    plain = build_model(spec, 2, adapters=False, seed=5).state_dict()
    shared = one.keys() & plain.keys()
    assert shared == {name for name in one if ".adapters." not in name}
    assert all(torch.equal(one[name], plain[name]) for name in shared)
    assert not torch.equal(one["mask_decoder.iou_token.weight"], other["mask_decoder.iou_token.weight"])


@pytest.mark.parametrize("spec", SMALL_PARAMS)
@torch.no_grad()
def test_an_image_does_not_see_its_batch_nor_train_mode(spec: ModelSpec) -> None:
    model = build_model(replace(spec, adapter_init="reference"), 1, adapters=True, seed=0).train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = images(spec, 3)
    together = model(x)
    assert torch.equal(together, model.eval()(x))
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def _adapted(spec: ModelSpec) -> PromptFreeSam:
    model = build_model(replace(spec, adapter_init="reference"), 1, adapters=True, seed=0)
    assert isinstance(model, PromptFreeSam)
    return model


def _block_as_identity(model: PromptFreeSam, index: int) -> None:
    """Another oracle than `skip_blocks`: block `index` put out of the network by its code."""

    def identity(x: torch.Tensor, *_: object) -> torch.Tensor:
        return x

    encoder = model.image_encoder
    if isinstance(encoder, TinyViTEncoder):
        stages = [stage.blocks for stage in list(encoder.layers)[1:]]  # type: ignore[union-attr]
        block = [block for blocks in stages for block in blocks][index]  # type: ignore[union-attr]
        block.forward = identity
        return
    assert isinstance(encoder, ViTEncoder)
    block, adapters = encoder.blocks[index], encoder.adapters[index]
    for last in (block.attn.proj, block.mlp.lin2, adapters.after_attention.up, adapters.beside_mlp.up):  # type: ignore[union-attr]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)


@pytest.mark.parametrize("spec", SMALL_PARAMS)
@torch.no_grad()
def test_a_skipped_block_is_an_identity_and_none_skipped_changes_no_bit(spec: ModelSpec) -> None:
    model, x = _adapted(spec), images(spec)
    whole = model(x)
    model.skip_blocks(())
    assert torch.equal(model(x), whole)
    for index in range(len(model.image_encoder.block_dims)):
        expected = _adapted(spec)
        _block_as_identity(expected, index)
        model.skip_blocks({index})
        assert torch.equal(model(x), expected(x)), index
        assert not torch.equal(model(x), whole), index
        assert torch.equal(model.from_prefix(model.prefix(x)), model(x)), index
    model.skip_blocks(())
    assert torch.equal(model(x), whole)


@pytest.mark.parametrize("spec", SMALL_PARAMS)
def test_a_skipped_blocks_adapters_get_no_gradient(spec: ModelSpec) -> None:
    model = _adapted(spec)
    order = model.adapters_in_order()
    last = len(order) // 2 - 1
    model.skip_blocks({0, last})
    step(model, spec, TRAINED)
    for index, adapter in enumerate(order):
        for name in adapter:
            assert (model.get_parameter(name).grad is None) == (index // 2 in (0, last)), name


def test_blocks_that_are_not_there_cannot_be_skipped() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny has no blocks \[-1, 4\]"):
        _adapted(SMALL["vit_tiny"]).skip_blocks([-1, 2, 4])


@torch.no_grad()
def test_sam_normalisation_is_sams() -> None:
    spec = SMALL["vit_tiny"]
    plain = build_model(spec, 1, adapters=False, seed=0)
    model = build_model(replace(spec, normalise="sam"), 1, adapters=False, seed=0)
    x = images(spec)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    by_hand = (x * 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(model(x), plain(by_hand), rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_refused() -> None:
    model = build_model(SMALL["vit_tiny"], 1, adapters=False, seed=0)
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\), not \(1, 3, 72, 72\)"):
        model(torch.zeros(1, 3, 72, 72))


@pytest.mark.parametrize(
    ("spec", "n_structures", "message"),
    [
        (ModelSpec(backbone="resnet"), 1, "unknown backbone 'resnet'; known ones: "),
        (ModelSpec(backbone="vit_tiny", input_px=100), 1, "100 is not a multiple of the patch size 8"),
        (ModelSpec(backbone="tiny_vit", input_px=250), 1, "input_px 250 is not a multiple of 4"),
        (ModelSpec(backbone="tiny_vit", input_px=300), 1, "a multiple of 16, a grid cell of stem mobile_sam"),
        (ModelSpec(backbone="unet", input_px=100), 1, "input_px 100 does not fit unet; a multiple of 16, 32 or more"),
        (ModelSpec(backbone="unet", input_px=16), 1, "input_px 16 does not fit unet"),
        (ModelSpec(backbone="nnunet", input_px=100), 1, "100 cannot be reduced 16 times; a multiple of 16, as 112"),
        (ModelSpec(backbone="vit_tiny", input_px=64, head="token"), 2, "there are 2 structures; use 'conv'"),
    ],
)
def test_study_errors(spec: ModelSpec, n_structures: int, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        build_model(spec, n_structures, adapters=False, seed=0)
    assert message in str(caught.value)


def test_a_named_checkpoint_must_be_given() -> None:
    spec = replace(SMALL["vit_tiny"], checkpoint="weights.pth")
    with pytest.raises(CheckpointError, match=r"^weights.pth: the study starts from this file, but"):
        build_model(spec, 1, adapters=False, seed=0)
