"""FedDBE: running mean and penalty by hand, aggregation, what is sent in which round, and a tiny federation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.errors import StudyError, TrainingError, UpdateError
from fedfms.methods import ServerState, Tensors, Update, make_method
from fedfms.methods.feddbe import MEAN, SHIFT, EmbeddingShift, FedDBE
from fedfms.models import meta_model
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec
from fedfms.training.build import build
from fedfms.training.prefix import PrefixCache
from fedfms.training.site import Site
from fedfms.training.state import StateStore
from tests.methods.common import SITES, assert_extended_run_is_identical, card, run, same, study, traffic

ENOUGH = "data.phantom_images=8"  # the mean of fewer than five slices is not sent


def _batch(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).requires_grad_()


def _single(mean: float = 0.0) -> EmbeddingShift:
    shift = EmbeddingShift((1, 1, 1), 0.1)
    shift.mean.fill_(mean)
    return shift


def test_running_mean_and_penalty_by_hand() -> None:
    shift = _single(mean=1.0)
    shift.begin(measuring=False)
    first, second = _batch(2.0, 4.0), _batch(10.0, 12.0, 17.0)
    shift(first)
    # 0.9 x 0 + 0.1 x 3 = 0.3; 1/2 (0.3 - 1)^2 = 0.245
    assert shift.distance().item() == pytest.approx(0.245)
    shift(second)
    # 0.9 x 0.3 + 0.1 x 13 = 1.57; 1/2 (1.57 - 1)^2 = 0.16245
    distance = shift.distance()
    assert distance.item() == pytest.approx(0.16245)
    distance.backward()
    # d/d embedding_b = 0.57 x 0.1 / 3 = 0.019 in the newest batch, nothing in the one before
    assert second.grad is not None
    assert second.grad.flatten().tolist() == pytest.approx([0.019] * 3)
    assert first.grad is None
    # A new round begins at zero.
    shift.begin(measuring=False)
    shift(_batch(20.0))
    assert shift.distance().item() == pytest.approx(0.5)  # 1/2 (2 - 1)^2
    shift.end()
    assert shift.mean.item() == 1.0


def test_the_penalty_is_a_mean_over_the_embeddings_elements() -> None:
    shift = EmbeddingShift((2, 1, 2), 0.5)
    shift.begin(measuring=False)
    shift(torch.tensor([0.0, 2.0, 4.0, 8.0]).view(1, 2, 1, 2))
    # running mean 0, 1, 2, 4: (0 + 1 + 4 + 16) / 2 / 4
    assert shift.distance().item() == 2.625


def test_a_measuring_round_has_no_shift_and_no_penalty_and_stores_its_mean() -> None:
    shift = _single()
    with torch.no_grad():
        shift.shift.fill_(5.0)
    method = FedDBE()
    model = meta_model(ModelSpec(backbone="vit_tiny", input_px=64), 1, adapters=True)
    model.extras = shift
    method.before_training(model, 0, ())
    assert shift(_batch(2.0, 4.0)).flatten().tolist() == [2.0, 4.0]
    assert method.penalty(model, {}) is None
    method.after_training(model)
    assert shift.mean.item() == pytest.approx(0.3)
    assert shift(_batch(2.0)).item() == 7.0  # scoring shifts, but does not change the running mean
    with pytest.raises(ValueError, match="in training only"):
        shift.distance()
    method.before_training(model, 1, ())
    assert shift(_batch(13.0)).item() == 18.0
    # 2 x 1/2 (1.3 - 0.3)^2
    penalty = FedDBE(kappa=2.0).penalty(model, {})
    assert penalty is not None
    assert penalty.item() == pytest.approx(1.0)
    method.after_training(model)
    assert shift.mean.item() == pytest.approx(0.3)


def _update(site: str, samples: int, **values: float) -> Update:
    named = {"w": "w", "mean": MEAN}
    return Update(site, {named[key]: torch.tensor([value]) for key, value in values.items()}, samples)


def test_aggregation_of_three_sites_by_hand() -> None:
    method = FedDBE()
    server = ServerState({"w": torch.zeros(1), MEAN: torch.zeros(1)}, round=0)
    updates = [_update("c", 60, w=4.0, mean=8.0), _update("a", 10, w=1.0, mean=0.0), _update("b", 30, w=2.0, mean=-4.0)]
    first = method.aggregate(updates, server)
    # w: (10 + 60 + 240) / 100 = 3.1; mean: (0 - 120 + 480) / 100 = 3.6
    assert {name: tensor.item() for name, tensor in first.shared.items()} == pytest.approx({"w": 3.1, MEAN: 3.6})
    assert first.round == 1
    # Later the mean is fixed; w: (10 + 90) / 40 = 2.5
    second = method.aggregate([_update("b", 30, w=3.0), _update("a", 10, w=1.0)], first)
    assert {name: tensor.item() for name, tensor in second.shared.items()} == pytest.approx({"w": 2.5, MEAN: 3.6})
    assert list(second.shared) == ["w", MEAN]
    assert same(method.aggregate(updates[::-1], server).shared, first.shared)
    with pytest.raises(UpdateError):
        method.aggregate([], server)


def test_what_a_site_receives_and_sends() -> None:
    method = FedDBE()
    shared = {"w": torch.zeros(1), MEAN: torch.zeros(1)}
    assert method.sent_names(0, tuple(shared)) == ("w", MEAN)
    assert method.sent_names(1, tuple(shared)) == ("w",)
    trained = {**shared, SHIFT: torch.ones(1)}
    assert method.outgoing(0, trained, tuple(shared)).keys() == {"w", MEAN}
    assert method.outgoing(7, trained, tuple(shared)).keys() == {"w"}
    # A site that joins later receives the mean with the model.
    assert method.dispatch(ServerState(shared, round=9), ["new"])["new"].keys() == shared.keys()


@pytest.mark.parametrize("options", [{"kappa": -1.0}, {"momentum": 0.0}, {"momentum": 1.5}, {"kappa": float("inf")}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=f"method feddbe: {next(iter(options))} is"):
        FedDBE(**options)


def test_the_partition_and_the_parameters() -> None:
    built, msa = build(study("feddbe"), SiteSettings()), build(study("fedmsa"), SiteSettings())
    assert built.partition.private == (SHIFT,)
    assert built.partition.shared == (*msa.partition.shared, MEAN)
    assert built.partition.frozen == msa.partition.frozen
    assert built.parameters().keys() == msa.parameters().keys() | {SHIFT}
    own = built.trained()
    assert own[SHIFT].shape == own[MEAN].shape == (64, 8, 8)
    assert not own[SHIFT].any()
    assert built.model.prefix_names() == msa.model.prefix_names()  # the prefix cache is not affected


def test_the_prefix_cache_applies() -> None:
    overrides = ("model.backbone=tiny_vit", "model.input_px=32")
    for method in ("feddbe", "fedmsa"):
        assert PrefixCache.applies(build(study(method, *overrides), SiteSettings()))


def _shift_of(folder: Path, site: str) -> Tensors:
    state = StateStore(folder / site / "state").load()
    assert state is not None
    return {name: state.trained[name] for name in (SHIFT, MEAN)}


@pytest.mark.slow
def test_a_federation_of_three_rounds(tmp_path: Path) -> None:
    whole = assert_extended_run_is_identical("feddbe", tmp_path, ENOUGH)
    msa = run(study("fedmsa", ENOUGH, rounds=2), tmp_path / "fedmsa")
    sent = [{site: r.results[site].update for site in SITES} for r in whole]
    assert not any(SHIFT in update.tensors for each in sent for update in each.values())
    assert not any(SHIFT in r.server.shared for r in whole)
    with_mean = [[MEAN in update.tensors for update in each.values()] for each in sent]
    assert with_mean == [[True, True], [False, False], [False, False]]
    # Round 0 equals FedMSA's, plus the mean.
    for site in SITES:
        of_msa = msa[0].results[site].update.tensors
        assert same({name: sent[0][site].tensors[name] for name in of_msa}, of_msa)
    assert not same({n: whole[1].server.shared[n] for n in msa[1].server.shared}, msa[1].server.shared)
    samples = [sent[0][site].samples for site in SITES]
    means = [sent[0][site].tensors[MEAN].double() for site in SITES]
    expected = sum(n * mean for n, mean in zip(samples, means, strict=True)) / sum(samples)
    assert torch.allclose(whole[0].server.shared[MEAN].double(), expected, atol=1e-7)
    assert whole[0].server.shared[MEAN].any()
    assert all(torch.equal(r.server.shared[MEAN], whole[0].server.shared[MEAN]) for r in whole)
    shifts = {site: _shift_of(tmp_path / "whole", site)[SHIFT] for site in SITES}
    assert all(shift.any() for shift in shifts.values())
    assert all(float(shift.abs().max()) < 1e-4 for shift in shifts.values())  # as the card states
    assert not torch.equal(shifts["a"], shifts["b"])


@pytest.mark.slow
def test_the_shift_is_zero_in_round_0_and_private_afterwards(tmp_path: Path) -> None:
    of = study("feddbe", ENOUGH, rounds=3)
    site = Site(of, "a", SiteSettings(), tmp_path / "one")
    received = site.built.shared()
    for round_ in range(3):
        result = site.train_round(round_, received)
        again = Site(of, "a", SiteSettings(), tmp_path / "new").train_round(round_, received)  # a new process
        assert same(result.update.tensors, again.update.tensors)
        shift = _shift_of(tmp_path, "new")[SHIFT]
        assert torch.equal(shift, _shift_of(tmp_path, "one")[SHIFT])
        assert bool(shift.any()) == (round_ > 0)
        received = {**received, **result.update.tensors}
    site.evaluate(received)
    assert torch.equal(site.built.trained()[SHIFT], shift)
    unseen = Site(of, "unseen", SiteSettings(), tmp_path / "unseen")
    unseen.evaluate(received)
    assert not unseen.built.trained()[SHIFT].any()


def test_a_new_site_trains_its_shift_and_keeps_the_global_mean(tmp_path: Path) -> None:
    site = Site(study("feddbe", ENOUGH, rounds=9), "a", SiteSettings(), tmp_path)
    received = {**site.built.shared(), MEAN: torch.full((64, 8, 8), 0.25)}
    update = site.train_round(5, received).update
    assert MEAN not in update.tensors
    assert _shift_of(tmp_path, ".")[SHIFT].any()
    assert torch.equal(_shift_of(tmp_path, ".")[MEAN], received[MEAN])


def test_kappa_affects_the_adapters(tmp_path: Path) -> None:
    """The penalty's gradient reaches the layers that make the embedding."""
    updates = []
    for kappa in ("0.0", "5.0"):
        site = Site(study("feddbe", ENOUGH, f"method_options.kappa={kappa}"), "a", SiteSettings(), tmp_path / kappa)
        updates.append(site.train_round(1, site.built.shared()).update.tensors)
    adapters = [name for name in updates[0] if ".adapters." in name]
    assert any(not torch.equal(updates[0][name], updates[1][name]) for name in adapters)


def test_the_shift_is_trained_by_sgd_at_the_same_rate() -> None:
    built = build(study("feddbe"), SiteSettings())
    optimizer = built.method.optimizer(built.parameters(), study("feddbe", "train.lr=0.5").train)
    shift = built.parameters()[SHIFT]
    shift.grad = torch.full_like(shift, 0.25)
    optimizer.step()
    assert torch.equal(shift, torch.full_like(shift, -0.125))
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(built.parameters())


def test_the_meta_device_model_at_the_papers_size() -> None:
    model = meta_model(ModelSpec(), 1, adapters=True)
    with torch.device("meta"):
        make_method("feddbe", {}).extend_model(model)
    assert model.get_parameter(SHIFT).is_meta
    assert tuple(model.get_buffer(MEAN).shape) == (256, 64, 64)
    assert model.roles()[SHIFT] == "extra"
    assert model.moving_buffers() == (MEAN,)


def test_the_cards_figures() -> None:
    first, two = traffic("feddbe", rounds=1), traffic("feddbe", rounds=2)
    later_up = 2 * two.up_mb - first.up_mb
    assert first.up_mb == first.down_mb == two.down_mb
    text = " ".join(card("feddbe").split())
    assert f"{first.shared:,} elements, {first.down_mb:.1f} MB" in text
    assert f"{later_up:.1f} MB up" in text


def test_the_mean_of_few_slices_is_not_sent(tmp_path: Path) -> None:
    few = study("feddbe")
    received = build(few, SiteSettings()).shared()
    with pytest.raises(TrainingError, match="site a, round 0: the site would send the mean embedding of 2 images"):
        Site(few, "a", SiteSettings(), tmp_path).train_round(0, received)
    assert Site(few, "a", SiteSettings(), tmp_path).train_round(1, received).update.tensors
