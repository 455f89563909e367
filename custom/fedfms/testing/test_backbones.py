"""The contract of every registered backbone, tested without editing this file: shapes, roles, gradients, prefix, seeds.

On torch's meta device every backbone is tested in full size: names, shapes, roles, and which parameters have gradients.
With values, it is tested at a small input size; above `MAX_PARAMETERS` a ViT has only two blocks, of full width
(`tests.models.make.shallow`), so vit_l and vit_h differ from vit_b in width and number of heads.
"""

from dataclasses import replace

import pytest
import torch

from fedfms.errors import CheckpointError, StudyError
from fedfms.models import BACKBONES, FAMILIES, ROLES, build_model, family_of, meta_model
from fedfms.models.sam import PromptFreeSam
from fedfms.models.tiny_vit import TinyViTEncoder
from fedfms.models.vit import ViTEncoder
from fedfms.study import ModelSpec
from fedfms.testing.models import (
    ADAPTED,
    SIZES_PX,
    VARIANTS,
    Case,
    assert_gradients,
    case_of,
    images,
    smallest_px,
    step,
    train_only,
)

TINY = ModelSpec(backbone="vit_tiny", input_px=64)
ALL = [*BACKBONES, *VARIANTS]
SAM = [name for name in ALL if name in VARIANTS or family_of(name) == "sam"]
SCRATCH = [name for name in ALL if name not in SAM]


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("n_structures", [1, 2])
def test_shapes_and_roles_in_full_size_on_meta(name: str, n_structures: int) -> None:
    spec = ModelSpec(backbone=name, input_px=smallest_px(name))
    model = meta_model(spec, n_structures, adapters=True).eval()
    logits = model(torch.empty(2, 3, spec.input_px, spec.input_px, device="meta"))
    assert logits.shape == (2, n_structures, model.mask_px, model.mask_px)
    assert (model.backbone, model.input_px, model.n_structures) == (name, spec.input_px, n_structures)
    assert model.family == family_of(name)
    roles = model.roles()
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert set(roles.values()) <= set(ROLES) - {"extra"}
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    in_order = [name for adapter in model.adapters_in_order() for name in adapter]
    assert len(in_order) == len(set(in_order))
    assert set(in_order) == {name for name, role in roles.items() if role == "adapter"}
    assert model.prefix_names() <= model.state_dict().keys()
    assert set(model.moving_buffers()) <= dict(model.named_buffers()).keys()


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_in_full_size_on_meta(name: str, adapters: bool) -> None:
    spec = ModelSpec(backbone=name, input_px=smallest_px(name))
    model = meta_model(spec, 2, adapters=adapters)
    has_adapters = bool(model.adapters_in_order())
    trained = ADAPTED if has_adapters else ("encoder", "decoder", "head")
    train_only(model, trained)
    model.train(model.train_mode)(torch.empty(2, 3, spec.input_px, spec.input_px, device="meta")).sum().backward()
    assert_gradients(model, trained)
    assert has_adapters == (adapters and family_of(name) == "sam")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "input_px", "mask_px", "blocks"),
    [
        ("vit_b", 1024, 256, 12), ("vit_l", 1024, 256, 24), ("vit_h", 1024, 256, 32), ("tiny_vit", 1024, 256, 10),
        ("vit_tiny", 128, 64, 4), ("unet", 256, 256, 0), ("unet_tiny", 256, 64, 0), ("nnunet", 256, 256, 0),
        ("nnunet_tiny", 256, 64, 0),
    ],
)  # fmt: skip
def test_known_sizes_of_masks_and_numbers_of_blocks(name: str, input_px: int, mask_px: int, blocks: int) -> None:
    model = meta_model(ModelSpec(backbone=name, input_px=input_px), 2, adapters=True).eval()
    assert model(torch.empty(2, 3, input_px, input_px, device="meta")).shape == (2, 2, mask_px, mask_px)
    assert len(model.adapters_in_order()) == 2 * blocks


@pytest.mark.parametrize("name", FAMILIES["sam"].backbones)
def test_every_block_has_two_adapters_in_order(name: str) -> None:
    model = meta_model(ModelSpec(backbone=name, input_px=smallest_px(name)), 1, adapters=True)
    assert isinstance(model, PromptFreeSam)
    order = model.adapters_in_order()
    assert ["after_attention" in adapter[0] for adapter in order] == [True, False] * (len(order) // 2)
    blocks = [int(adapter[0].split(".")[2]) for adapter in order]
    assert blocks == [index for index in range(len(model.image_encoder.block_dims)) for _ in range(2)]


@pytest.mark.parametrize(
    ("backbone", "adapters", "roles", "expected"),
    [
        ("vit_b", True, ADAPTED, 11_026_666),  # FedMSA, C = 2: 7,100,928 + 4,058,350 - 132,612
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_structures", [1, 2])
def test_all_trained_parameters_learn_and_only_moving_buffers_change(name: str, n_structures: int) -> None:
    case = case_of(name)
    model = case.build(n_structures, adapter_init="reference")
    expected = set(ROLES) - {"extra"} if case.adapters else {"encoder", "decoder", "head"}
    assert set(model.roles().values()) == expected - ({"head"} if case.adapters and n_structures == 1 else set())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step(model, case.spec, case.trained)
    assert_gradients(model, case.trained)
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == set(model.moving_buffers())


@pytest.mark.parametrize("name", SAM)
def test_all_parameters_of_a_sam_learn(name: str) -> None:
    case = case_of(name)
    model = case.build(2, adapters=False)
    step(model, case.spec, ("encoder", *ADAPTED, "unused"))
    assert_gradients(model, ("encoder", *ADAPTED))


@pytest.mark.parametrize("name", SAM)
def test_zero_adapters_have_gradients_from_the_first_step(name: str) -> None:
    case = case_of(name)
    model = case.build()
    step(model, case.spec, ADAPTED)
    for parameter_name, parameter in model.named_parameters():
        if ".adapters." in parameter_name:
            assert parameter.grad is not None
            assert ".up." not in parameter_name or parameter.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SAM)
@torch.no_grad()
def test_zero_adapters_do_not_change_the_function(name: str) -> None:
    case = case_of(name)
    plain, adapted = (case.build(adapters=adapters, seed=3, window_pad="sam") for adapters in (False, True))
    assert torch.equal(plain(images(case.spec)), adapted(images(case.spec)))


def _check_prefix(case: Case) -> None:
    """`prefix` and `from_prefix` give `forward`; the prefix depends on exactly the tensors that it names."""
    model = case.build(2, adapter_init="reference").eval()
    x = images(case.spec)
    features, logits = model.prefix(x), model(x)
    assert torch.equal(model.from_prefix(features), logits)
    state = model.state_dict()
    assert model.prefix_names() <= state.keys()
    for name, tensor in state.items():
        if name not in model.prefix_names():
            tensor.add_(1)
    assert torch.equal(model.prefix(x), features)
    for name in model.prefix_names():
        if not name.endswith("num_batches_tracked"):
            state[name].add_(0.5)
            assert not torch.equal(model.prefix(x), features), name
            state[name].sub_(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_prefix_then_rest_is_forward(name: str) -> None:
    _check_prefix(case_of(name))


@pytest.mark.slow
@torch.no_grad()
def test_vit_b_in_full_depth() -> None:
    case = Case(ModelSpec(input_px=64), BACKBONES["vit_b"].build)
    _check_prefix(case)
    plain, adapted = (case.build(adapters=adapters, seed=3) for adapters in (False, True))
    assert torch.equal(plain(images(case.spec)), adapted(images(case.spec)))


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_stored_before_the_first_trained_tensor(name: str) -> None:
    case = case_of(name)
    model = case.build()
    train_only(model, case.trained)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        features = model.prefix(images(case.spec))
    assert features.grad_fn is None
    assert not saved


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_random_values_depend_on_the_seed_alone(name: str) -> None:
    case = case_of(name)
    before = torch.get_rng_state()
    one = case.build(seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)  # torch's own stream is unchanged
    torch.rand(7)
    same, other = case.build(seed=5).state_dict(), case.build(seed=6).state_dict()
    assert one.keys() == same.keys()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAM)
def test_adapters_and_structures_do_not_change_other_random_values(name: str) -> None:
    case = case_of(name)
    one, other, plain = case.build(seed=5).state_dict(), case.build(seed=6).state_dict(), {}
    plain = case.build(2, adapters=False, seed=5).state_dict()
    shared = one.keys() & plain.keys()
    assert shared == {name for name in one if ".adapters." not in name}
    assert all(torch.equal(one[name], plain[name]) for name in shared)
    assert not torch.equal(one["mask_decoder.iou_token.weight"], other["mask_decoder.iou_token.weight"])


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch_in_evaluation(name: str) -> None:
    case = case_of(name)
    model = case.build(adapter_init="reference").eval()
    x = images(case.spec, 3)
    together = model(x)
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAM)
@torch.no_grad()
def test_training_mode_changes_no_output_and_no_buffer_of_a_sam(name: str) -> None:
    case = case_of(name)
    model = case.build(adapter_init="reference").train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = images(case.spec, 3)
    assert torch.equal(model(x), model.eval()(x))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("name", SCRATCH)
def test_networks_from_scratch_train_everything(name: str) -> None:
    model = meta_model(case_of(name).spec, 2, adapters=False)
    assert model.train_mode
    assert model.adapters_in_order() == []
    assert model.prefix_names() == frozenset()
    assert not model.prefix_is_costly
    assert sorted(model.moving_buffers()) == sorted(dict(model.named_buffers()))


@pytest.mark.parametrize("name", ALL)
def test_a_meta_device_model_has_the_same_tensors(name: str) -> None:
    case = case_of(name)
    spec = case.spec
    meta = case.builder(spec, 2, adapters=True, seed=0, blank=True, plan={}).state_dict()
    real = case.build(2, adapters=True).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in meta.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}


@pytest.mark.parametrize("name", ALL)
def test_images_of_another_size_are_rejected(name: str) -> None:
    px = case_of(name).spec.input_px
    model = case_of(name).build()
    with pytest.raises(ValueError, match=rf"\(B, 3, {px}, {px}\), not \(1, 3, {px + 8}, {px + 8}\)"):
        model(torch.zeros(1, 3, px + 8, px + 8))


def _adapted(case: Case) -> PromptFreeSam:
    model = case.build(adapter_init="reference")
    assert isinstance(model, PromptFreeSam)
    return model


def _replace_block_by_identity(model: PromptFreeSam, index: int) -> bool:
    """Remove block `index` without `skip_blocks`, as its oracle; False for an encoder of an unknown class."""

    def identity(x: torch.Tensor, *_: object) -> torch.Tensor:
        return x

    encoder = model.image_encoder
    if isinstance(encoder, TinyViTEncoder):
        stages = [stage.blocks for stage in list(encoder.layers)[1:]]  # type: ignore[union-attr]
        block = [block for blocks in stages for block in blocks][index]  # type: ignore[union-attr]
        block.forward = identity
        return True
    if not isinstance(encoder, ViTEncoder):
        return False
    block, adapters = encoder.blocks[index], encoder.adapters[index]
    for last in (block.attn.proj, block.mlp.lin2, adapters.after_attention.up, adapters.beside_mlp.up):  # type: ignore[union-attr]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", SAM)
@torch.no_grad()
def test_a_skipped_block_is_an_identity_and_none_skipped_changes_no_bit(name: str) -> None:
    case = case_of(name)
    model, x = _adapted(case), images(case.spec)
    whole = model(x)
    model.skip_blocks(())
    assert torch.equal(model(x), whole)
    for index in range(len(model.image_encoder.block_dims)):
        expected = _adapted(case)
        model.skip_blocks({index})
        if _replace_block_by_identity(expected, index):
            assert torch.equal(model(x), expected(x)), index
        assert not torch.equal(model(x), whole), index
        assert torch.equal(model.from_prefix(model.prefix(x)), model(x)), index
    model.skip_blocks(())
    assert torch.equal(model(x), whole)


@pytest.mark.parametrize("name", SAM)
def test_adapters_of_a_skipped_block_get_no_gradient(name: str) -> None:
    case = case_of(name)
    model = _adapted(case)
    order = model.adapters_in_order()
    last = len(order) // 2 - 1
    skipped = {last} if last == 1 else {0, last}
    model.skip_blocks(skipped)
    step(model, case.spec, ADAPTED)
    for index, adapter in enumerate(order):
        for parameter in adapter:
            assert (model.get_parameter(parameter).grad is None) == (index // 2 in skipped), parameter


def test_unknown_blocks_cannot_be_skipped() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny has no blocks \[-1, 4\]"):
        _adapted(case_of("vit_tiny")).skip_blocks([-1, 2, 4])


@torch.no_grad()
def test_sam_normalisation_is_sams() -> None:
    plain = build_model(TINY, 1, adapters=False, seed=0)
    model = build_model(replace(TINY, normalise="sam"), 1, adapters=False, seed=0)
    x = images(TINY)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    by_hand = (x * 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(model(x), plain(by_hand), rtol=1e-4, atol=1e-5)


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
    spec = replace(TINY, checkpoint="weights.pth")
    with pytest.raises(CheckpointError, match=r"^weights.pth: the study starts from this file, but"):
        build_model(spec, 1, adapters=False, seed=0)


def test_every_backbone_accepts_a_small_input() -> None:
    assert {smallest_px(name) for name in BACKBONES} <= set(SIZES_PX[:4])
