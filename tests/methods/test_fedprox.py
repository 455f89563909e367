"""FedProx: the proximal term by hand, and the two methods that it equals without it."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fedfms.errors import StudyError
from fedfms.methods import ServerState, Update, make_method
from fedfms.methods.fedprox import FedProx
from tests.methods.common import assert_extended_run_is_identical, card_states, run, same, study, vit_b


class _Two(nn.Module):
    """A model with two shared tensors and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.v = nn.Parameter(torch.tensor([[3.0]]))
        self.frozen = nn.Parameter(torch.tensor([9.0]), requires_grad=False)


def test_the_term_and_its_gradient_by_hand() -> None:
    model = _Two()
    received = {"w": torch.tensor([0.0, 4.0]), "v": torch.tensor([[3.5]])}
    penalty = FedProx(mu=0.2).penalty(model, received)  # type: ignore[arg-type]
    assert penalty is not None
    # 0.2 / 2 x ((1 - 0)^2 + (2 - 4)^2 + (3 - 3.5)^2) = 0.1 x 5.25
    torch.testing.assert_close(penalty, torch.tensor(0.525))
    penalty.backward()
    torch.testing.assert_close(model.w.grad, torch.tensor([0.2, -0.4]))  # mu x (S - S_global)
    torch.testing.assert_close(model.v.grad, torch.tensor([[-0.1]]))
    assert model.frozen.grad is None


def test_aggregation_of_three_sites_by_sample_count() -> None:
    updates = [Update(s, {"w": torch.tensor([x])}, n) for s, x, n in (("a", 1.0, 1), ("b", 2.0, 3), ("c", 5.0, 4))]
    server = ServerState({"w": torch.zeros(1)}, round=4)
    after = FedProx().aggregate(updates, server)
    # (1 x 1 + 3 x 2 + 4 x 5) / 8 = 27 / 8
    assert after.shared["w"].item() == 3.375
    assert after.round == 5


@pytest.mark.slow
@pytest.mark.parametrize(("options", "equal"), [([], "fedmsa"), (["method_options.full=true"], "fedsam")])
def test_with_mu_0_it_equals_fedmsa_or_fedsam(options: list[str], equal: str, tmp_path: Path) -> None:
    ours = run(study("fedprox", "method_options.mu=0", *options), tmp_path / "ours")
    theirs = run(study(equal), tmp_path / "theirs")
    assert same(ours[-1].server.shared, theirs[-1].server.shared)


@pytest.mark.slow
def test_a_large_mu_keeps_a_site_near_the_received_model(tmp_path: Path) -> None:
    def moved(mu: float) -> float:
        only = run(study("fedprox", f"method_options.mu={mu}", "train.local_epochs=3", rounds=1), tmp_path / str(mu))
        received, sent = only[0].received["a"], only[0].results["a"].update.tensors
        return math.sqrt(sum(float((sent[name] - received[name]).square().sum()) for name in sent))

    assert moved(1000.0) < 0.7 * moved(0.0)


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    assert_extended_run_is_identical("fedprox", tmp_path)


@pytest.mark.parametrize("mu", [-0.1, math.inf, math.nan])
def test_mu_is_finite_and_not_negative(mu: float) -> None:
    with pytest.raises(StudyError, match="method fedprox: mu is"):
        make_method("fedprox", {"mu": mu})


@pytest.mark.parametrize(("full", "parameters"), [(False, 11_026_666), (True, 93_596_650)])
def test_the_card_states_what_is_sent(full: bool, parameters: int) -> None:
    partition, sizes = vit_b("fedprox", full=full)
    assert sum(sizes[name] for name in partition.shared) == parameters
    assert not partition.private
    assert card_states("fedprox", parameters)
