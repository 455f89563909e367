"""The contract of every registered backbone, tested without editing this file: shapes, roles, gradients, prefix, seeds.

On torch's meta device every backbone is tested in full size: names, shapes, roles, and which parameters have gradients.
With values, it is tested at a small input size; above `MAX_PARAMETERS` a ViT has only two blocks, of full width
(`fedfms.testing.models.shallow`), so vit_l and vit_h differ from vit_b in width and number of heads.
"""

import pytest
import torch

from fedfms.models import BACKBONES, FAMILIES, ROLES, family_of, meta_model
from fedfms.models.sam import PromptFreeSam
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


@pytest.mark.parametrize("name", FAMILIES["sam"].backbones)
def test_every_block_has_two_adapters_in_order(name: str) -> None:
    model = meta_model(ModelSpec(backbone=name, input_px=smallest_px(name)), 1, adapters=True)
    assert isinstance(model, PromptFreeSam)
    order = model.adapters_in_order()
    assert ["after_attention" in adapter[0] for adapter in order] == [True, False] * (len(order) // 2)
    blocks = [int(adapter[0].split(".")[2]) for adapter in order]
    assert blocks == [index for index in range(len(model.image_encoder.block_dims)) for _ in range(2)]


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


def test_every_backbone_accepts_a_small_input() -> None:
    assert {smallest_px(name) for name in BACKBONES} <= set(SIZES_PX[:4])
