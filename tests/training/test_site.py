"""A site on the phantom: what a round returns, remembers and never touches; the reference loop over sites."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedfms.errors import CheckpointError, FedfmsError, SettingsError
from fedfms.methods import METHODS, Tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study, load_study
from fedfms.training.build import build
from fedfms.training.reference import rounds
from fedfms.training.site import Site

PHANTOM = Path(__file__).parents[2] / "jobs" / "studies" / "phantom.yaml"
SMALL = ["data.phantom_images=10", "train.rounds=2", "train.local_epochs=1", "held_out=[unseen]"]


def _study(method: str = "fedmsa", *more: str) -> Study:
    return load_study(PHANTOM, method=method, overrides=[*SMALL, *more])


def _shared(study: Study) -> Tensors:
    return build(study, SiteSettings()).shared()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_round_trains_what_is_shared_and_nothing_else(method: str, tmp_path: Path) -> None:
    study = _study(method)
    site = Site(study, "a", SiteSettings(), tmp_path)
    received = _shared(study)
    frozen = {n: site.built.model.get_parameter(n).clone() for n in site.built.partition.frozen}
    result = site.train_round(0, received)
    assert result.update.samples == site.samples == 8  # 10 images of 5 patients; one patient validates
    assert set(result.update.tensors) == set(received)
    assert any(not torch.equal(received[name], tensor) for name, tensor in result.update.tensors.items())
    assert all(torch.equal(site.built.model.get_parameter(name), tensor) for name, tensor in frozen.items())
    assert result.scores is not None
    assert result.scores["images"] == 2
    assert torch.isfinite(torch.tensor(result.train_loss))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_shared_tensor_is_trained_in_one_round(method: str, tmp_path: Path) -> None:
    """With adapters that start at zero, a down-projection moves from the second step on; a round has more than one."""
    study = _study(method, "train.batch_size=3")
    received = _shared(study)
    update = Site(study, "a", SiteSettings(), tmp_path).train_round(0, received).update
    still = [name for name, tensor in update.tensors.items() if torch.equal(tensor, received[name])]
    assert not still


@pytest.mark.parametrize("method", sorted(METHODS))
def test_partition_is_of_all_parameters_and_moving_buffers(method: str) -> None:
    built = build(_study(method), SiteSettings())
    names = [*dict(built.model.named_parameters()), *built.model.moving_buffers()]
    partition = built.partition
    assert sorted([*partition.shared, *partition.private, *partition.frozen]) == sorted(names)


def test_a_site_made_anew_for_every_round_gives_the_same_bits(tmp_path: Path) -> None:
    study = _study()
    received = _shared(study)
    kept = Site(study, "a", SiteSettings(), tmp_path / "kept")
    first = kept.train_round(0, received).update.tensors
    second = kept.train_round(1, first).update.tensors
    Site(study, "a", SiteSettings(), tmp_path / "anew").train_round(0, received)
    again = Site(study, "a", SiteSettings(), tmp_path / "anew").train_round(1, first).update.tensors
    assert all(torch.equal(second[name], again[name]) for name in second)
    # ... and so does a round that is run a second time after a crash.
    repeated = Site(study, "a", SiteSettings(), tmp_path / "anew").train_round(1, first).update.tensors
    assert all(torch.equal(second[name], repeated[name]) for name in second)


def test_the_optimizers_state_matters_and_is_kept(tmp_path: Path) -> None:
    study = _study()
    received = _shared(study)
    Site(study, "a", SiteSettings(), tmp_path / "kept").train_round(0, received)
    with_state = Site(study, "a", SiteSettings(), tmp_path / "kept").train_round(1, received).update.tensors
    without = Site(study, "a", SiteSettings(), tmp_path / "fresh").train_round(1, received).update.tensors
    assert any(not torch.equal(with_state[name], without[name]) for name in with_state)


def test_the_order_of_sites_changes_nothing(tmp_path: Path) -> None:
    study = _study()
    *_, one = rounds(study, ["a", "b", "unseen"], SiteSettings(), tmp_path / "one")
    *_, other = rounds(study, ["unseen", "b", "a"], SiteSettings(), tmp_path / "other")
    assert all(torch.equal(one.server.shared[name], other.server.shared[name]) for name in one.server.shared)
    assert set(one.results) == {"a", "b"}
    assert set(one.held_out) == {"unseen"}


def test_a_held_out_site_scores_all_its_images_and_draws_a_few(tmp_path: Path) -> None:
    study = _study()
    report = Site(study, "unseen", SiteSettings(), tmp_path).evaluate(_shared(study), overlays="final")
    assert (report["part"], report["images"], report["held_out"]) == ("all", 10, True)
    assert len(list((tmp_path / "overlays").glob("final_*.png"))) == 4


def test_a_model_of_another_study_is_refused(tmp_path: Path) -> None:
    received = _shared(_study("fedsam"))
    with pytest.raises(CheckpointError, match="site a, round 0: .* not those of this study"):
        Site(_study("fedmsa"), "a", SiteSettings(), tmp_path).train_round(0, received)


def test_faults_name_the_site_and_the_round(tmp_path: Path) -> None:
    study = _study("fedmsa", "data.dataset=polyp")
    with pytest.raises(SettingsError, match="site a, round 3: .*data_root"):
        Site(study, "a", SiteSettings(), tmp_path).train_round(3, _shared(study))
    with pytest.raises(FedfmsError, match="the site has not trained"):
        Site(_study(), "a", SiteSettings(), tmp_path).local_model()


def test_a_named_checkpoint_needs_a_folder_and_a_file(tmp_path: Path) -> None:
    study = _study("fedmsa", "model.checkpoint=weights.pth")
    with pytest.raises(SettingsError, match="names no checkpoint folder"):
        build(study, SiteSettings())
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        build(study, SiteSettings(checkpoints=tmp_path))
