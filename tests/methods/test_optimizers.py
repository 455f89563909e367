"""Combined optimizers: each steps its own parameters, one learning rate applies to all, the state is stored."""

import io

import pytest
import torch
from torch import nn

from fedfms.methods.optimizers import CombinedOptimizer


def _made(values: tuple[float, float] = (1.0, 1.0)) -> tuple[nn.Parameter, nn.Parameter, CombinedOptimizer]:
    first, second = (nn.Parameter(torch.tensor([value])) for value in values)
    return first, second, CombinedOptimizer(torch.optim.Adam([first], lr=0.1), torch.optim.SGD([second], lr=0.1))


def _step(optimizer: CombinedOptimizer, *parameters: nn.Parameter) -> None:
    optimizer.zero_grad()
    torch.stack([3 * parameter.square() for parameter in parameters]).sum().backward()
    optimizer.step()


def test_each_optimizer_steps_its_own_parameters() -> None:
    first, second, optimizer = _made()
    _step(optimizer, first, second)
    # gradient 6: Adam's first step is lr x sign, SGD's is lr x gradient
    assert first.item() == pytest.approx(0.9)
    assert second.item() == pytest.approx(0.4)
    optimizer.zero_grad()
    assert first.grad is None
    assert second.grad is None


def test_the_state_survives_saving_and_loading() -> None:
    first, second, optimizer = _made()
    _step(optimizer, first, second)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    *others, again = _made((first.item(), second.item()))
    again.load_state_dict(torch.load(buffer, weights_only=True))
    for parameters, each in (((first, second), optimizer), (others, again)):
        for group in each.param_groups:
            group["lr"] = 0.05
        _step(each, *parameters)
    assert torch.equal(first, others[0])
    assert torch.equal(second, others[1])
    assert second.item() == pytest.approx(0.4 - 0.05 * 6 * 0.4)  # the new learning rate, not the stored one


def test_states_of_other_optimizers_and_common_parameters_are_errors() -> None:
    first, _, optimizer = _made()
    with pytest.raises(ValueError, match="argument"):
        optimizer.load_state_dict({"parts": optimizer.state_dict()["parts"][:1]})
    with pytest.raises(ValueError, match="more than one"):
        CombinedOptimizer(torch.optim.SGD([first], lr=0.1), torch.optim.SGD([first], lr=0.1))
