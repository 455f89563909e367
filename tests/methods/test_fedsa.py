"""FedSA: down-projections and decoder are shared, up-projections are private."""

from pathlib import Path

import pytest
import torch

from fedfms.methods import METHODS, Layout, ServerState, Update, make_method
from tests.methods.common import SITES, assert_extended_run_is_identical, card_states, run, same, study, vit_b

LAYOUT = Layout(
    roles={
        "encoder.w": "encoder", "a.0.down.weight": "adapter", "a.0.down.bias": "adapter", "a.0.up.weight": "adapter",
        "a.0.up.bias": "adapter", "upscaling.weight": "decoder", "decoder.up.weight": "decoder", "head.bias": "head",
    },
    adapters=(("a.0.down.weight", "a.0.down.bias", "a.0.up.weight", "a.0.up.bias"),),
)  # fmt: skip


def test_only_up_projections_of_adapters_are_private() -> None:
    partition = make_method("fedsa", {}).partition(LAYOUT)
    assert partition.private == ("a.0.up.weight", "a.0.up.bias")
    assert partition.frozen == ("encoder.w",)
    assert set(partition.shared) == set(LAYOUT.roles) - {*partition.private, "encoder.w"}
    assert METHODS["fedsa"].personal


def test_vit_b_down_and_up_by_count() -> None:
    partition, sizes = vit_b("fedsa")
    # 24 adapters, 768 -> 192 -> 768: 768 x 192 + 192 down, 192 x 768 + 768 up; decoder and head 3,925,738
    assert sum(sizes[name] for name in partition.private) == 24 * (192 * 768 + 768) == 3_557_376
    assert sum(sizes[name] for name in partition.shared) == 24 * (768 * 192 + 192) + 3_925_738 == 7_469_290
    assert card_states("fedsa", 7_469_290)
    assert card_states("fedsa", 3_557_376)


def test_aggregation_of_three_sites_by_sample_count() -> None:
    rows = (("a", [1.0, 0.0], 2), ("b", [4.0, 8.0], 1), ("c", [0.0, -4.0], 5))
    updates = [Update(site, {"down": torch.tensor(values)}, samples) for site, values, samples in rows]
    after = make_method("fedsa", {}).aggregate(updates, ServerState({"down": torch.zeros(2)}))
    # (2 x 1 + 4 + 0) / 8 and (0 + 8 - 20) / 8
    assert torch.equal(after.shared["down"], torch.tensor([0.75, -1.5]))


def test_received_tensors_replace_shared_ones_only() -> None:
    method = make_method("fedsa", {})
    own = {"down": torch.tensor([1.0]), "up": torch.tensor([2.0])}
    assert same(method.personal_model(own, {}, {"down": torch.tensor([5.0])}), own | {"down": torch.tensor([5.0])})


@pytest.mark.slow
def test_private_tensors_are_trained_stored_and_not_sent(tmp_path: Path) -> None:
    for each in assert_extended_run_is_identical("fedsa", tmp_path):
        for tensors in (each.server.shared, *(result.update.tensors for result in each.results.values())):
            assert not [name for name in tensors if ".up." in name and ".adapters." in name]
            assert [name for name in tensors if ".down." in name]
    states = [torch.load(tmp_path / "whole" / site / "state" / "round_00002.pt", weights_only=True) for site in SITES]
    ups = [{n: t for n, t in state["trained"].items() if ".adapters." in n and ".up." in n} for state in states]
    assert all(not torch.equal(ups[0][name], ups[1][name]) for name in ups[0])


@pytest.mark.slow
def test_the_result_differs_from_fedmsas(tmp_path: Path) -> None:
    ours, theirs = run(study("fedsa"), tmp_path / "sa")[-1], run(study("fedmsa"), tmp_path / "msa")[-1]
    assert not same(ours.server.shared, {name: theirs.server.shared[name] for name in ours.server.shared})
