"""What the tests of several networks do: images, a step, a look at its gradients."""

from __future__ import annotations

import torch

from fedfms.models import SegmentationModel, build_model
from fedfms.study import ModelSpec


def images(spec: ModelSpec, batch: int = 2) -> torch.Tensor:
    """Random ones, the same each time: float32 (batch, 3, input_px, input_px) in 0..1."""
    return torch.rand(batch, 3, spec.input_px, spec.input_px, generator=torch.Generator().manual_seed(1))


def step(model: SegmentationModel, spec: ModelSpec, trained: tuple[str, ...]) -> None:
    """Gradients of all parameters of these roles."""
    roles = model.roles()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(roles[name] in trained)
    logits = model.train()(images(spec))
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))).sum().backward()


def assert_gradients(model: SegmentationModel, trained: tuple[str, ...]) -> None:
    """A gradient for all that trains, none for the rest; zero only for key biases, which softmax cancels."""
    roles = model.roles()
    for name, parameter in model.named_parameters():
        if roles[name] in trained:
            assert parameter.grad is not None, name
            assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def built_by_seed(spec: ModelSpec, *, adapters: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The values of a seed, which were seen to come again and to leave torch's own stream alone; those of another."""
    before = torch.get_rng_state()
    one = build_model(spec, 1, adapters=adapters, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    same = build_model(spec, 1, adapters=adapters, seed=5).state_dict()
    assert one.keys() == same.keys()
    assert all(torch.equal(one[name], same[name]) for name in one)
    return one, build_model(spec, 1, adapters=adapters, seed=6).state_dict()
