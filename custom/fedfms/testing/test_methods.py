"""One test matrix over all registered methods, in process: registering a method tests it."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.federation.inprocess import CompletedRound, final_scores, rounds
from fedfms.methods import METHODS, POOL, Layout, Tensors, training_sites
from fedfms.models.base import EXTRAS
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, Study, load_study
from fedfms.training.build import build
from fedfms.training.site import Site
from fedfms.training.state import SiteState, StateStore

PHANTOM = STUDIES / "phantom.yaml"
SITES = ("a", "b", "c")
SMALL = [
    "data.phantom_images=7", "data.phantom_px=64", "model.input_px=64", "train.rounds=3", "train.local_epochs=1",
    "train.batch_size=2", "sites=[a, b, c]", "held_out=[unseen]", "federation.min_cases=1",
]  # fmt: skip
pytestmark = pytest.mark.slow
BY_NAME = pytest.mark.parametrize("method", sorted(METHODS))


def _study(method: str, *overrides: str) -> Study:
    return load_study(PHANTOM, method=method, overrides=[*SMALL, *overrides])


def _run(study: Study, folder: Path, sites: tuple[str, ...] = (*SITES, "unseen")) -> list[CompletedRound]:
    return list(rounds(study, sites, SiteSettings(), folder))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """run(method) -> (study, rounds, folder): three rounds without a stop, run once per method."""
    made: dict[str, tuple[Study, list[CompletedRound], Path]] = {}

    def run(method: str) -> tuple[Study, list[CompletedRound], Path]:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            made[method] = (_study(method), _run(_study(method), folder), folder)
        return made[method]

    return run


def _same(one: Tensors, other: Tensors) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def _equal(one: Any, other: Any) -> bool:
    """Equality of server state: tensors, numbers, texts, and dicts and lists of them."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _same_servers(one: Any, other: Any) -> bool:
    return (
        one.round == other.round
        and _same(one.shared, other.shared)
        and _equal(one.state, other.state)
        and set(one.per_site) == set(other.per_site)
        and all(_same(one.per_site[site], other.per_site[site]) for site in one.per_site)
    )


@BY_NAME
def test_shared_private_and_frozen_tensors_cover_all_parameters(method: str) -> None:
    built = build(_study(method), SiteSettings())
    layout, partition = Layout.of(built.model), built.partition
    names = [*partition.shared, *partition.private, *partition.frozen]
    assert sorted(names) == sorted([*(name for name, _ in built.model.named_parameters()), *layout.buffers])
    assert len(names) == len(set(names))
    roles = layout.roles
    assert all(roles[name] != "unused" for name in partition.trained if name in roles)
    assert not any(name.startswith(EXTRAS) for name in partition.frozen)


@BY_NAME
def test_updates_hold_shared_finite_and_trained_tensors(method: str, runs: Any) -> None:
    study, done, _ = runs(method)
    partition = build(study, SiteSettings()).partition
    assert len(done) == 3
    for number, round_ in enumerate(done):
        assert round_.round == number
        assert set(round_.results) == set(training_sites(study))
        for result in round_.results.values():
            assert set(result.update.tensors) <= set(partition.shared)
            assert all(torch.isfinite(tensor).all() for tensor in result.update.tensors.values())
    moved = [name for name, tensor in done[-1].server.shared.items() if not torch.equal(tensor, done[0].received[
        next(iter(done[0].results))].get(name, tensor))]  # fmt: skip
    assert moved or not partition.shared


@BY_NAME
def test_a_site_changes_exactly_the_trained_tensors(method: str, runs: Any, tmp_path: Path) -> None:
    study, done, folder = runs(method)
    name = training_sites(study)[0]
    initial = build(study, SiteSettings())
    before, after = initial.trained(), _state(folder / name).trained
    sent = {tensor for round_ in done for tensor in round_.received[name]}
    to_train = {*sent, *initial.partition.private} & set(initial.parameters())
    assert not {n for n in to_train if torch.equal(before[n], after[n])}
    assert all(torch.equal(before[n], after[n]) for n in initial.partition.trained - sent - to_train)
    site = Site(study, name, SiteSettings(), tmp_path)
    site.train_round(0, done[0].received[name])
    now = dict(site.built.model.named_parameters())
    frozen = {n: p for n, p in initial.model.named_parameters() if n in initial.partition.frozen}
    assert all(torch.equal(now[n], p) for n, p in frozen.items())


@BY_NAME
def test_the_order_of_sites_does_not_matter(method: str, runs: Any, tmp_path: Path) -> None:
    study, done, _ = runs(method)
    other = list(islice(rounds(study, ("unseen", *reversed(SITES)), SiteSettings(), tmp_path), 2))
    assert _same_servers(other[-1].server, done[1].server)


@BY_NAME
def test_a_run_resumed_after_any_round_gives_the_same_result(method: str, runs: Any, tmp_path: Path) -> None:
    """Stopped after the first and the second round, each time after one site has trained the next."""
    study, done, folder = runs(method)
    first = training_sites(study)[0]
    for _ in range(2):
        course = rounds(study, (*SITES, "unseen"), SiteSettings(), tmp_path)
        server = next(course).server
        course.close()
        sent = build(study, SiteSettings()).method.dispatch(server, sorted(training_sites(study)))
        Site(study, first, SiteSettings(), tmp_path / first).train_round(server.round, sent[first])
    assert _same_servers(_run(study, tmp_path)[-1].server, done[-1].server)
    for name in training_sites(study):
        assert _same(_state(tmp_path / name).trained, _state(folder / name).trained)
        assert _same(_state(tmp_path / name).stored, _state(folder / name).stored)


def _state(folder: Path) -> SiteState:
    state = StateStore(folder / "state").load()
    assert state is not None
    return state


@BY_NAME
def test_the_planned_traffic_is_what_is_sent(method: str, runs: Any) -> None:
    study, done, _ = runs(method)
    planned = plan_traffic(study)
    sites = len(training_sites(study))
    up = sum(_nbytes(result.update.tensors) for round_ in done for result in round_.results.values())
    down = sum(_nbytes(round_.received[site]) for round_ in done for site in round_.results)
    assert planned.up_mb * 3 * sites * 1e6 == pytest.approx(up)
    assert planned.down_mb * 3 * sites * 1e6 == pytest.approx(down)
    assert planned.total_mb * 1e6 == pytest.approx(up + down)


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@BY_NAME
def test_every_site_is_scored(method: str, runs: Any) -> None:
    study, done, folder = runs(method)
    scores = final_scores(study, (*SITES, "unseen"), SiteSettings(), folder, done[-1].server)
    assert set(scores) == {*SITES, "unseen"}
    assert all(0 <= entry["scores"]["dice"] <= 1 for entry in scores.values())
    assert [site for site, entry in scores.items() if entry["held_out"]] == ["unseen"]


@BY_NAME
def test_a_site_saves_its_model_if_the_method_is_personal(method: str, runs: Any) -> None:
    study, done, folder = runs(method)
    server = done[-1].server
    for name in training_sites(study):
        site = Site(study, name, SiteSettings(), folder / name)
        site.evaluate(server.per_site.get(name, server.shared), overlays="final")
        saved = folder / name / "models" / "personal_final.pt"
        assert saved.is_file() is METHODS[method].personal
        if saved.is_file():
            assert saved.stat().st_mode & 0o077 == 0
            assert _same(torch.load(saved, weights_only=True)["tensors"], site.built.trained())


@BY_NAME
def test_a_method_describes_itself(method: str) -> None:
    registered = METHODS[method]
    assert registered.paper
    assert not (registered.personal and registered.centralised)
    assert (training_sites(_study(method)) == (POOL,)) is registered.centralised
