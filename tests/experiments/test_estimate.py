"""What a table says beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedfms.experiments import estimate
from fedfms.reporting.cost.timing import Timing
from fedfms.settings import SiteSettings
from fedfms.study import Study

from .make import grid


def test_what_the_runs_start_from_is_told() -> None:
    weights = ("model.checkpoint=w.pth", *grid().overrides)
    both = grid(methods=("fedmsa", "fedunet"), held_out=("site-1",), overrides=weights)
    assert "3 runs, 9 rounds, from random weights; " in estimate.count(grid(methods=("fedmsa",)).cells()).text(1)
    assert "2 runs, 6 rounds, 1 from w.pth, 1 from random weights; " in estimate.count(both.cells()).text(1)


def test_a_step_is_timed_as_a_run_will_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def apart(study: Study, settings: SiteSettings, *_: Any, **__: Any) -> Timing:
        asked.append(settings)
        return Timing("cpu", 3, 4.0, 0.5, 0, 0)

    monkeypatch.setattr(estimate, "apart", apart)
    cells = grid(methods=("fedmsa",), held_out=("site-1",)).cells()
    told = estimate.estimate(cells, SiteSettings(cache=tmp_path, threads=1, micro_batch=2), lambda name: None)
    assert asked == [SiteSettings(threads=1, micro_batch=2)], "a process of two threads tells nothing of one of one"
    assert told.runs == 1
    assert told.seconds is not None
