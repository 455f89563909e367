"""Random streams: equal for equal names, independent of the global stream."""

import torch

from fedfms.rng import rng, seeded, torch_rng


def test_a_stream_depends_on_its_name_only() -> None:
    assert rng(0, "a", 1, "x").random() == rng(0, "a", 1, "x").random()
    draws = {rng(*name).random() for name in [(0, "a", 1, "x"), (1, "a", 1, "x"), (0, "b", 1, "x"), (0, "a", 2, "x")]}
    assert len(draws) == 4
    assert torch.rand(1, generator=torch_rng(3)).item() == torch.rand(1, generator=torch_rng(3)).item()


def test_values_do_not_change_between_versions() -> None:
    assert int(rng(0, "site-1", 2, "shuffle").integers(2**31)) == 710125288


def test_seeded_does_not_change_the_global_stream() -> None:
    before = torch.random.get_rng_state()
    with seeded(5, "encoder"):
        first = torch.rand(2)
    with seeded(5, "encoder"):
        second = torch.rand(2)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
