"""The learning rate by round, and in a site's optimizer."""

import math
from pathlib import Path

import pytest
import torch

from fedfms.errors import StudyError
from fedfms.methods import METHODS, Tensors, make_method
from fedfms.methods.schedule import SCHEDULES
from fedfms.study import TrainSpec, find_study, load_study
from fedfms.training.site import Site

from .common import run, study


@pytest.mark.parametrize(
    ("name", "rates"),
    [("constant", [2.0, 2.0, 2.0, 2.0, 2.0]), ("cosine", [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0]),
     ("poly", [2.0, 2 * 0.75**0.9, 2 * 0.5**0.9, 2 * 0.25**0.9, 0.0])],
)  # fmt: skip
def test_rates_by_hand(name: str, rates: list[float]) -> None:
    method, spec = make_method("fedmsa", {}), TrainSpec(rounds=4, lr=2.0, lr_schedule=name)
    assert [method.learning_rate(spec, round_ / 4) for round_ in range(5)] == pytest.approx(rates)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_rounds_rate_is_positive_and_not_rising(method: str, name: str) -> None:
    spec = TrainSpec(rounds=20, lr_schedule=name)
    rates = [make_method(method, {}).learning_rate(spec, round_ / 20) for round_ in range(20)]
    assert min(rates) > 0
    assert rates == sorted(rates, reverse=True)


def test_a_study_accepts_the_schedules() -> None:
    path = find_study("phantom")
    assert load_study(path).train.lr_schedule == "constant"
    for name in SCHEDULES:
        assert load_study(path, overrides=[f"train.lr_schedule={name}"]).train.lr_schedule == name
    with pytest.raises(StudyError, match="train.lr_schedule is 'step'"):
        load_study(path, overrides=["train.lr_schedule=step"])


@pytest.mark.slow
def test_a_sites_optimizer_has_the_rounds_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[tuple[int, float]] = []
    fit = Site._fit

    def watched(site: Site, round_: int, optimizer: torch.optim.Optimizer, received: Tensors) -> float:
        rates.extend((round_, group["lr"]) for group in optimizer.param_groups)
        return fit(site, round_, optimizer, received)

    monkeypatch.setattr(Site, "_fit", watched)
    run(study("fedmsa", "train.lr_schedule=cosine", "train.lr=0.01"), tmp_path)
    assert sorted(set(rates)) == [(0, 0.01), (1, pytest.approx(0.005))]
