"""FedALA: steps of w by hand on a quadratic, its convergence, what is mixed, and a tiny federation."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.errors import StudyError, TrainingError
from fedfms.methods import Layout, ServerState, SiteContext, Tensors, Update
from fedfms.methods.fedala import PASSES, FedALA
from fedfms.models import meta_model
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec
from fedfms.training.site import Site
from fedfms.training.state import StateStore
from fedfms.training.trainer import Aborted
from tests.methods.common import SITES, assert_extended_run_is_identical, card, run, same, study, traffic

# Two blocks of two adapters, decoder and head.
ADAPTERS = (("0.a",), ("0.m",), ("1.a",), ("1.m",))
ROLES = {"frozen": "encoder", **{name: "adapter" for (name,) in ADAPTERS}, "d": "decoder", "h": "head"}
LAYOUT = Layout(ROLES, ADAPTERS)


class Quadratic:
    """Local data with loss sum_k 1/2 (theta_k - target)^2 and the batch as target, or with the given `losses`."""

    def __init__(self, batches: Sequence[float], losses: Iterable[float] | None = None) -> None:
        self._batches = batches
        self._losses = None if losses is None else iter(losses)
        self.asked: list[tuple[float, str]] = []
        self.seen: list[Tensors] = []

    def batches(self, share: float, purpose: str) -> Iterable[Any]:
        self.asked.append((share, purpose))
        return self._batches

    def gradients(self, tensors: Tensors, names: Collection[str], batch: Any) -> tuple[float, Tensors]:
        self.seen.append(tensors)
        off = {name: tensors[name] - batch for name in names}
        loss = sum(float(each.square().sum()) / 2 for each in off.values())
        return loss if self._losses is None else next(self._losses), off


def _fedala(**options: Any) -> FedALA:
    method = FedALA(**options)
    method.partition(LAYOUT)
    return method


def _values(names: Iterable[str], *values: float) -> Tensors:
    return {name: torch.tensor(values) for name in names}


def _site(data: Quadratic, own: Tensors, passes: int = 1, **w: list[float]) -> SiteContext:
    stored = {PASSES: torch.tensor(passes)} | {name: torch.tensor(value) for name, value in w.items()}
    return SiteContext(3, 8, own, stored, data)


def test_two_steps_of_w_by_hand() -> None:
    method = _fedala(layers=0)  # decoder and head
    own, received = _values(["d", "h", "1.m"], 0.0, 0.0, 1.0), _values(["d", "h", "1.m"], 1.0, 0.5, 3.0)
    data = Quadratic([0.25, 0.75])
    start = method.on_receive(_site(data, own), received)
    # difference        1        0.5        2
    # w = 1: theta      1        0.5        3
    # gradient (0.25)   0.75     0.25       2.75
    # w - g x diff      0.25     0.875      1 - 5.5 -> 0
    # theta             0.25     0.4375     1
    # gradient (0.75)   -0.5     -0.3125    0.25
    # w - g x diff      0.75     1.03125->1 -0.5 -> 0
    # theta             0.75     0.5        1
    for name in ("d", "h"):
        assert torch.equal(data.seen[0][name], torch.tensor([1.0, 0.5, 3.0]))
        assert torch.equal(data.seen[1][name], torch.tensor([0.25, 0.4375, 1.0]))
        assert torch.equal(start.stored[name], torch.tensor([0.75, 1.0, 0.0]))
        assert torch.equal(start.tensors[name], torch.tensor([0.75, 0.5, 1.0]))
    assert torch.equal(start.tensors["1.m"], received["1.m"])
    assert data.asked == [(0.8, "ala")]  # one pass, since w was learnt before
    assert start.stored[PASSES] == 2
    # Until the next training, the site's model is the mixture of its tensors and the global ones by the stored w.
    personal = method.personal_model(_values(["d", "h", "1.m"], 2.0, 2.0, 2.0), start.stored, received)
    assert torch.equal(personal["d"], torch.tensor([1.25, 0.5, 2.0]))
    assert torch.equal(personal["1.m"], received["1.m"])


def test_w_continues_from_its_value_and_inputs_are_not_modified() -> None:
    method = _fedala(layers=0, eta=0.5)
    own, received = _values(["d", "h"], 0.0), _values(["d", "h"], 1.0)
    site = _site(Quadratic([0.0]), own, d=[0.5], h=[1.0])
    start = method.on_receive(site, received)
    # theta = w: gradient 0.5 and 1; w - 0.5 x gradient = 0.25 and 0.5
    assert start.stored["d"].item() == 0.25
    assert start.stored["h"].item() == 0.5
    assert (site.stored["d"].item(), site.stored["h"].item()) == (0.5, 1.0)
    assert same(own, _values(["d", "h"], 0.0))


@pytest.mark.parametrize(
    ("losses", "passes"),
    [
        ([1.0] * 50, 10),  # converged after the first ten
        ([0.0, 1.0] * 25, 50),  # s.d. 0.5: never; ends at the maximum
        ([9.0, 1.0, *[0.5] * 48], 12),  # needs all of the last ten
        ([0.0, 0.19] * 25, 10),  # s.d. 0.095
        ([0.0, 0.21] * 25, 50),  # s.d. 0.105
    ],
)
def test_the_first_learning_of_w_ends_when_the_losses_converge(losses: list[float], passes: int) -> None:
    data = Quadratic([0.0], losses)
    own, received = _values(["d", "h"], 0.0), _values(["d", "h"], 1.0)
    start = _fedala(layers=0).on_receive(_site(data, own, passes=0), received)
    assert len(data.asked) == passes == start.stored[PASSES]
    assert set(data.asked) == {(0.8, "ala")}


def test_options_apply_to_the_learning_of_w() -> None:
    data = Quadratic([0.0], [0.0, 9.0] * 25)
    method = _fedala(layers=0, share=0.5, epochs=3)
    method.on_receive(_site(data, _values(["d", "h"], 0.0), passes=0), _values(["d", "h"], 1.0))
    assert data.asked == [(0.5, "ala")] * 3
    data = Quadratic([0.0], [0.0, 9.0] * 25)
    method = _fedala(layers=0, window=2, spread=5.0)
    method.on_receive(_site(data, _values(["d", "h"], 0.0), passes=0), _values(["d", "h"], 1.0))
    assert len(data.asked) == 2


@pytest.mark.parametrize("round_", [0, 5])
def test_a_site_starts_its_first_round_from_the_global_model(round_: int) -> None:
    """A new site too: its own tensors were never trained."""
    method = _fedala()
    data = Quadratic([0.0])
    own, received = _values(LAYOUT.roles, 0.1), _values([n for n in LAYOUT.roles if n != "frozen"], 0.3)
    start = method.on_receive(SiteContext(round_, 8, own, {}, data), received)
    assert same(start.tensors, {**own, **received})
    assert data.asked == []
    assert start.stored.keys() == {PASSES}
    assert same(method.personal_model(own, start.stored, received), start.tensors)
    assert same(method.personal_model(own, {}, received), start.tensors)  # a held-out site


@pytest.mark.parametrize(
    ("layers", "mixed"),
    [(0, {"d", "h"}), (1, {"1.a", "1.m", "d", "h"}), (2, {"0.a", "0.m", "1.a", "1.m", "d", "h"})],
)
def test_upper_layers_are_mixed_and_lower_ones_are_global(layers: int, mixed: set[str]) -> None:
    names = [name for name in LAYOUT.roles if name != "frozen"]
    own, received = _values(names, 0.0), _values(names, 1.0)
    start = _fedala(layers=layers).on_receive(_site(Quadratic([0.0]), own), received)
    assert start.stored.keys() - {PASSES} == mixed
    assert {name for name in names if torch.equal(start.tensors[name], received[name])} == set(names) - mixed


@given(
    st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2), min_size=1, max_size=5),
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=4),
)
def test_w_stays_in_its_range_and_the_mixture_between_its_ends(
    ends: list[tuple[float, float]], targets: list[float]
) -> None:
    own, received = ({name: torch.tensor(values) for name in ("d", "h")} for values in zip(*ends, strict=True))
    start = _fedala(layers=0).on_receive(_site(Quadratic(targets), own), received)
    w, mixture = start.stored["d"], start.tensors["d"]
    assert bool(((w >= 0) & (w <= 1)).all())
    slack = 1e-6 * torch.maximum(own["d"].abs(), received["d"].abs())
    assert bool((mixture >= torch.minimum(own["d"], received["d"]) - slack).all())
    assert bool((mixture <= torch.maximum(own["d"], received["d"]) + slack).all())
    assert torch.equal(mixture[w == 1], received["d"][w == 1])
    assert torch.equal(mixture[w == 0], own["d"][w == 0])


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    data = Quadratic([0.0], [float("nan")])
    with pytest.raises(TrainingError, match="loss of a mixture became nan"):
        _fedala(layers=0).on_receive(_site(data, _values(["d", "h"], 0.0)), _values(["d", "h"], 1.0))


@pytest.mark.parametrize(
    "options",
    [{"layers": -1}, {"share": 0.0}, {"share": 1.1}, {"eta": 0.0}, {"epochs": 0}, {"window": 1}, {"spread": 0.0},
     {"eta": float("nan")}],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=f"method fedala: {next(iter(options))} is"):
        FedALA(**options)


def test_more_layers_than_blocks_are_an_error() -> None:
    with pytest.raises(StudyError, match="layers is 3; 2 blocks at most"):
        FedALA(layers=3).partition(LAYOUT)


def test_aggregation_of_three_sites_by_hand() -> None:
    updates = [Update(s, {"d": torch.tensor([v])}, n) for s, v, n in (("b", 2.0, 30), ("c", 4.0, 60), ("a", 1.0, 10))]
    after = _fedala().aggregate(updates, ServerState({"d": torch.zeros(1)}, round=4))
    # (10 x 1 + 30 x 2 + 60 x 4) / 100
    assert (after.round, after.shared["d"].item()) == (5, pytest.approx(3.1))


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_bits_and_w_is_not_sent(tmp_path: Path) -> None:
    whole = assert_extended_run_is_identical("fedala", tmp_path)
    msa = run(study("fedmsa", rounds=2), tmp_path / "fedmsa")
    # The first round equals FedMSA's; the second starts from each site's mixture.
    assert same(whole[0].server.shared, msa[0].server.shared)
    assert not same(whole[1].results["a"].update.tensors, msa[1].results["a"].update.tensors)
    for site in SITES:
        assert all(r.results[site].update.tensors.keys() == msa[0].server.shared.keys() for r in whole)
        stored = StateStore(tmp_path / "whole" / site / "state").load().stored  # type: ignore[union-attr]
        w = torch.cat([each.flatten() for name, each in stored.items() if name != PASSES])
        assert 0 <= float(w.min()) < 1  # w was learnt
        assert float(w.max()) <= 1
        assert float(w.mean()) > 0.99  # as the card states
        assert 11 <= stored[PASSES] <= 51  # of rounds 1 and 2
        assert any(".adapters.2." in name for name in stored)
        assert not any(".adapters.1." in name for name in stored)  # of four blocks, the last two


def test_every_pass_of_a_round_sees_the_same_slices(tmp_path: Path) -> None:
    site = Site(study("fedala", "data.phantom_images=10"), "a", SiteSettings(), tmp_path)
    passes = [[key for batch in site._sample(0.8, 1, "ala") for key in batch["key"]] for _ in range(2)]
    assert passes[0] == passes[1]
    assert len(passes[0]) == round(0.8 * site.samples)


def test_the_learning_of_w_can_be_stopped_between_batches(tmp_path: Path) -> None:
    of = study("fedala")
    first = Site(of, "a", SiteSettings(), tmp_path)
    update = first.train_round(0, first.built.shared()).update.tensors
    asked = []
    again = Site(of, "a", SiteSettings(), tmp_path, stop=lambda: asked.append(1) or len(asked) > 3)  # type: ignore[func-returns-value]
    with pytest.raises(Aborted):
        again.train_round(1, {name: tensor + 0.01 for name, tensor in update.items()})
    assert len(asked) == 4  # within the learning of w, which comes first
    assert StateStore(tmp_path / "state").load().round == 0  # type: ignore[union-attr]


def test_the_cards_figures() -> None:
    sent = traffic("fedala", rounds=2)
    assert sent.up_mb == sent.down_mb
    text = " ".join(card("fedala").split())
    assert f"{sent.shared:,} parameters, {sent.up_mb:.1f} MB" in text
    model = meta_model(ModelSpec(), 1, adapters=True)
    layout, method = Layout.of(model), FedALA()
    shared = _values(method.partition(layout).shared, 0.0)
    w = method.on_receive(_site(Quadratic([0.0]), shared), shared).stored.keys() - {PASSES}
    mixed = sum(model.get_parameter(name).numel() for name in w)
    assert f"{mixed:,} elements, {mixed * 4 / 1e6:.1f} MB" in text
