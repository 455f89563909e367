"""The estimate of an experiment."""

from pathlib import Path
from typing import Any

import pytest

from fedfms.experiments import estimate
from fedfms.reporting.cost.timing import Timing
from fedfms.settings import SiteSettings
from fedfms.study import Study

from .make import experiment


def test_the_initial_weights_are_counted() -> None:
    weights = ("model.checkpoint=w.pth", *experiment().overrides)
    both = experiment(methods=("fedmsa", "fedunet"), held_out=("site-1",), overrides=weights)
    text = estimate.count(experiment(methods=("fedmsa",)).runs()).text(1)
    assert "3 runs, 9 rounds, from random weights; " in text
    assert "2 runs, 6 rounds, 1 from w.pth, 1 from random weights; " in estimate.count(both.runs()).text(1)


def test_a_step_is_timed_with_the_settings_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def measure_in_subprocess(study: Study, settings: SiteSettings, *_: Any, **__: Any) -> Timing:
        seen.append(settings)
        return Timing("cpu", 3, 4.0, 0.5, 0, 0)

    monkeypatch.setattr(estimate, "measure_in_subprocess", measure_in_subprocess)
    runs = experiment(methods=("fedmsa",), held_out=("site-1",)).runs()
    found = estimate.estimate(runs, SiteSettings(cache=tmp_path, threads=1, micro_batch=2), lambda name: None)
    assert seen == [SiteSettings(threads=1, micro_batch=2)], "the number of threads changes the time of a step"
    assert found.runs == 1
    assert found.seconds is not None
