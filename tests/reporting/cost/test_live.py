"""Live bytes of a step: what is counted adds up, and one slice's tell of a batch's."""

from __future__ import annotations

import pytest

from fedfms.reporting.cost.live import estimate, live_bytes
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study, TrainSpec

STUDY = Study("test", method="fedmsa", model=ModelSpec(backbone="vit_tiny", input_px=64), train=TrainSpec(batch_size=4))


@pytest.mark.parametrize("settings", [SiteSettings(), SiteSettings(attention="plain")], ids=["fast", "plain"])
def test_an_estimate_is_near_the_count_of_the_whole_batch(settings: SiteSettings) -> None:
    live = live_bytes(STUDY, settings)
    assert live.state == pytest.approx(2 * live.gradients, rel=0.01)  # Adam's two numbers for each
    whole = live.weights + live.state + live.peak
    assert 0.8 * whole < estimate(STUDY, settings) < 1.6 * whole


def test_less_is_taken_by_parts_of_a_batch_and_by_a_prediction() -> None:
    whole = estimate(STUDY, SiteSettings())
    assert estimate(STUDY, SiteSettings(micro_batch=1)) < estimate(STUDY, SiteSettings(micro_batch=2)) < whole
    assert estimate(STUDY, SiteSettings(micro_batch=9)) == whole
    assert estimate(STUDY, SiteSettings(), training=False) < whole
