"""Streams of randomness: the same for the same name, and nobody else's are touched."""

from __future__ import annotations

import torch

from fedfms.rng import rng, seeded, torch_rng


def test_streams_are_functions_of_their_names() -> None:
    assert rng(0, "a", 1, "x").random() == rng(0, "a", 1, "x").random()
    draws = {rng(*name).random() for name in [(0, "a", 1, "x"), (1, "a", 1, "x"), (0, "b", 1, "x"), (0, "a", 2, "x")]}
    assert len(draws) == 4
    assert torch.rand(1, generator=torch_rng(3)).item() == torch.rand(1, generator=torch_rng(3)).item()


def test_golden_values_do_not_drift() -> None:
    assert int(rng(0, "site-1", 2, "shuffle").integers(2**31)) == 710125288


def test_seeded_leaves_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    with seeded(5, "encoder"):
        first = torch.rand(2)
    with seeded(5, "encoder"):
        second = torch.rand(2)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
