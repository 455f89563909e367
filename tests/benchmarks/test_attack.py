"""The attack benchmark: a site with inverted masks, and one with a negated update; a study for each rule."""

from pathlib import Path

import pytest
import torch

from benchmarks.attack import LENGTH, LabelFlipper, SignFlipper, make_study
from fedfms.settings import SiteSettings
from fedfms.study import AGGREGATION_RULES
from fedfms.training.build import build
from fedfms.training.site import Site

SMALL = ("data.phantom_images=4", "model.input_px=32")


@pytest.mark.parametrize("rule", sorted(AGGREGATION_RULES))
def test_five_sites_are_enough_for_each_rule(rule: str) -> None:
    assert make_study(rule).federation.aggregation == rule


def test_a_byzantine_site_flips_its_masks_or_its_update(tmp_path: Path) -> None:
    study, settings = make_study("mean", SMALL), SiteSettings()
    honest = Site(study, "b", settings, tmp_path / "honest")
    labels = LabelFlipper(study, "b", settings, tmp_path / "labels")
    good, bad = honest._dataset("train")[0], labels._dataset("train")[0]
    assert torch.equal(torch.as_tensor(bad["label"]), 1 - torch.as_tensor(good["label"]))
    received = build(study, settings).shared()
    sent = honest.train_round(0, received).update.tensors
    flipped = SignFlipper(study, "b", settings, tmp_path / "signs").train_round(0, received)
    for name, tensor in flipped.update.tensors.items():
        assert torch.allclose(tensor - received[name], -LENGTH * (sent[name] - received[name]), atol=1e-5)
        assert torch.equal(torch.from_numpy(flipped.payload.arrays[name]), tensor)  # what travels
    assert flipped.payload.base is None
