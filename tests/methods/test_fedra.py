"""FedRA: the draw of blocks; what a site receives, trains and sends; aggregation of three sites' parts."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.errors import StudyError, UpdateError
from fedfms.methods import Layout, ServerState, Tensors, Update, make_method
from fedfms.methods.fedra import FedRA, draw_blocks
from fedfms.rng import rng
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.site import Site
from fedfms.training.trainer import Aborted
from tests.methods.common import SITES, assert_extended_run_is_identical, card_states, run, same, study, vit_b

ADAPTERS = (("0.a",), ("0.m",), ("1.a",), ("1.m",))  # two blocks
LAYOUT = Layout({name: "adapter" for (name,) in ADAPTERS} | {"d": "decoder"}, ADAPTERS)


def _fedra(fraction: float = 0.5, weighting: str = "samples") -> FedRA:
    method = FedRA(fraction=fraction, weighting=weighting)
    method.bind(LAYOUT)
    return method


def _tensors(**values: float) -> Tensors:
    return {name.replace("_", ".").lstrip("b"): torch.tensor([value]) for name, value in values.items()}


@settings(deadline=None)  # the slowest case, many blocks and few places, uses all draws
@given(
    st.integers(1, 32), st.floats(0.01, 1), st.sets(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=12),
    st.integers(0, 1000), st.randoms(),
)  # fmt: skip
def test_a_draw_covers_all_blocks_evenly_and_depends_on_the_seed_only(
    blocks: int, fraction: float, sites: set[str], seed: int, random: object
) -> None:
    names = sorted(sites)
    drawn = draw_blocks(names, blocks, fraction, rng(seed))
    assert drawn.keys() == sites
    assert frozenset().union(*drawn.values()) == frozenset(range(blocks))
    count = max(1, round(fraction * blocks), math.ceil(blocks / len(sites)))
    assert {len(subset) for subset in drawn.values()} == {count}
    random.shuffle(names)  # type: ignore[attr-defined]
    assert draw_blocks(names, blocks, fraction, rng(seed)) == drawn


def test_the_default_fraction_is_two_thirds_and_draws_differ_by_round_and_site() -> None:
    method = make_method("fedra", {})
    layout = Layout({}, tuple((f"{index}",) for index in range(24)))
    method.bind(layout)
    shared = {name: torch.zeros(1) for (name,) in layout.adapters}
    sent = [method.dispatch(ServerState(shared, round=r, seed=3), ["a", "b", "c"]) for r in range(4)]
    assert all(len(tensors) == 2 * 8 for each in sent for tensors in each.values())
    assert len({frozenset(tensors) for each in sent for tensors in each.values()}) > 6
    other = method.dispatch(ServerState(shared, round=0, seed=4), ["a", "b", "c"])
    assert {s: set(t) for s, t in other.items()} != {s: set(t) for s, t in sent[0].items()}


def test_a_site_gets_its_blocks_whole_with_decoder_and_head() -> None:
    shared = _tensors(b0_a=1.0, b0_m=2.0, b1_a=3.0, b1_m=4.0, d=5.0)
    sent = _fedra().dispatch(ServerState(shared, round=7), ["b", "a"])
    assert sorted(map(sorted, sent.values())) == [["0.a", "0.m", "d"], ["1.a", "1.m", "d"]]
    assert all(torch.equal(tensor, shared[name]) for tensors in sent.values() for name, tensor in tensors.items())
    again = _fedra().dispatch(ServerState(shared, round=7), ["a", "b"])
    assert {site: set(tensors) for site, tensors in again.items()} == {s: set(t) for s, t in sent.items()}


def test_aggregation_of_three_sites_by_hand() -> None:
    server = ServerState(_tensors(b0_a=0.0, b0_m=0.0, b1_a=9.0, b1_m=8.0, d=0.0), round=2)
    updates = [
        Update("c", _tensors(b0_a=6.0, b0_m=1.0, d=4.0), 3),
        Update("a", _tensors(b0_a=2.0, b0_m=-1.0, d=1.0), 1),
        Update("b", _tensors(d=2.0), 4),
    ]
    after = _fedra().aggregate(updates, server)
    # block 0: a and c, (1 x 2 + 3 x 6) / 4 and (-1 + 3 x 1) / 4; block 1: unchanged; d: (1 + 4 x 2 + 3 x 4) / 8
    assert same(after.shared, _tensors(b0_a=5.0, b0_m=0.5, b1_a=9.0, b1_m=8.0, d=2.625))
    assert list(after.shared) == list(server.shared)
    assert after.notes == {"blocks": {"a": [0], "b": [], "c": [0]}}
    assert after.round == 3
    assert same(_fedra().aggregate(updates[::-1], server).shared, after.shared)


def test_the_plain_mean_of_three_sites_by_hand() -> None:
    server = ServerState(_tensors(b0_a=0.0, b0_m=0.0, b1_a=9.0, b1_m=8.0, d=0.0))
    updates = [
        Update("c", _tensors(b0_a=6.0, b0_m=1.0, d=4.0), 3),
        Update("a", _tensors(b0_a=2.0, b0_m=-1.0, d=1.0), 1),
        Update("b", _tensors(b0_a=4.5, b0_m=3.0, d=-0.5), 4),
    ]
    after = _fedra(weighting="plain").aggregate(updates, server)
    # (6 + 2 + 4.5) / 3, (1 - 1 + 3) / 3, no site, (4 + 1 - 0.5) / 3; by samples the first is (18 + 2 + 18) / 8
    assert same(after.shared, _tensors(b0_a=12.5 / 3, b0_m=1.0, b1_a=9.0, b1_m=8.0, d=1.5))
    assert _fedra().aggregate(updates, server).shared["0.a"].item() == 4.75
    two = _fedra(weighting="plain").aggregate(updates[:2] + [Update("b", _tensors(d=4.0), 4)], server)
    assert same(two.shared, _tensors(b0_a=4.0, b0_m=0.0, b1_a=9.0, b1_m=8.0, d=3.0))


@pytest.mark.slow
def test_with_all_blocks_it_equals_fedmsa(tmp_path: Path) -> None:
    ours = run(study("fedra", "method_options.fraction=1"), tmp_path / "ours")
    theirs = run(study("fedmsa"), tmp_path / "theirs")
    assert same(ours[-1].server.shared, theirs[-1].server.shared)


@pytest.mark.slow
def test_a_site_trains_and_sends_what_it_received_and_the_rest_is_unchanged(tmp_path: Path) -> None:
    each = assert_extended_run_is_identical("fedra", tmp_path, "method_options.fraction=0.5")
    for now in each:
        assert set().union(*now.received.values()) == set(now.server.shared)
        for site, result in now.results.items():
            assert result.update.tensors.keys() == now.received[site].keys() < now.server.shared.keys()
            assert any(not torch.equal(t, now.received[site][n]) for n, t in result.update.tensors.items())
    states = [torch.load(tmp_path / "whole" / "a" / "state" / f"round_{r:05d}.pt", weights_only=True) for r in (1, 2)]
    before, after = (state["trained"] for state in states)
    for name in each[2].server.shared.keys() - each[2].received["a"].keys():
        assert torch.equal(before[name], after[name])


@pytest.mark.slow
def test_skipped_and_frozen_blocks_give_different_numbers(tmp_path: Path) -> None:
    skipped = run(study("fedra", rounds=1), tmp_path / "skipped")[0]
    frozen = run(study("fedra", "method_options.skip_unallocated=false", rounds=1), tmp_path / "frozen")[0]
    for site in SITES:
        assert skipped.received[site].keys() == frozen.received[site].keys()
        assert not same(skipped.results[site].update.tensors, frozen.results[site].update.tensors)
        assert skipped.results[site].scores == frozen.results[site].scores  # scored before training, without skipping


def test_an_interrupted_training_skips_no_block_afterwards(tmp_path: Path) -> None:
    asked: list[int] = []

    def stop() -> bool:
        """False while the received model is scored, True at the first training batch."""
        asked.append(len(site.built.model.image_encoder.skipped))  # type: ignore[union-attr, arg-type]
        return asked[-1] > 0

    site = Site(study("fedra"), "a", SiteSettings(), tmp_path, stop)
    received = {name: tensor for name, tensor in site.built.shared().items() if ".adapters.0." not in name}
    with pytest.raises(Aborted):
        site.train_round(0, received)
    assert asked[-1] == 1
    assert not site.built.model.image_encoder.skipped  # type: ignore[union-attr]
    assert all(site.built.model.get_parameter(name).requires_grad for name in site.built.partition.trained)


@pytest.mark.slow
def test_the_first_block_can_be_skipped_with_the_prefix_cache(tmp_path: Path) -> None:
    updates = []
    for cached in (True, False):
        of = Study.from_dict({
            "name": "t", "method": "fedra",
            "data": {"phantom_images": 4, "phantom_px": 32, "cache": cached},
            "model": {"backbone": "tiny_vit", "input_px": 32},
            "train": {"batch_size": 2, "rounds": 1},
        })  # fmt: skip
        site = Site(of, "a", SiteSettings(), tmp_path / str(cached))
        received = {name: tensor for name, tensor in site.built.shared().items() if ".adapters.0." not in name}
        updates.append(site.train_round(0, received).update.tensors)
        assert (tmp_path / str(cached) / "cache").exists() == cached
    for name, tensor in updates[0].items():
        torch.testing.assert_close(tensor, updates[1][name], rtol=1e-4, atol=1e-5)


def test_no_updates_and_fractions_out_of_range_are_errors() -> None:
    with pytest.raises(UpdateError, match="no updates"):
        _fedra().aggregate([], ServerState(_tensors(d=0.0)))
    for fraction in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(StudyError, match="method fedra: fraction is"):
            make_method("fedra", {"fraction": fraction})


def test_an_unknown_weighting_is_an_error() -> None:
    with pytest.raises(StudyError, match="method fedra: weighting is 'size'; one of 'samples', 'plain'"):
        make_method("fedra", {"weighting": "size"})


def test_the_card_states_what_is_sent() -> None:
    partition, sizes = vit_b("fedra")
    adapters = sum(sizes[name] for name in partition.shared if ".adapters." in name)
    every = sum(sizes[name] for name in partition.shared)
    assert (every, adapters) == (11_026_666, 7_100_928)
    assert card_states("fedra", every - adapters + adapters * 8 // 12)
