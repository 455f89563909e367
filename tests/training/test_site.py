"""A site on the phantom: what a round returns, stores and leaves unchanged; the in-process loop over sites."""

import hashlib
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedfms.errors import CheckpointError, FedfmsError, SettingsError
from fedfms.federation.inprocess import rounds
from fedfms.methods import POOL, Tensors
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, Study, load_study
from fedfms.training import cpu_tuning
from fedfms.training.build import build, checkpoint_path
from fedfms.training.site import Site
from fedfms.training.state import StateStore

PHANTOM = STUDIES / "phantom.yaml"
SMALL = [
    "data.phantom_images=10", "train.rounds=2", "train.local_epochs=1", "held_out=[unseen]", "federation.min_cases=1",
]  # fmt: skip


def _study(method: str = "fedmsa", *more: str) -> Study:
    return load_study(PHANTOM, method=method, overrides=[*SMALL, *more])


def _shared(study: Study) -> Tensors:
    return build(study, SiteSettings()).shared()


@pytest.mark.slow
def test_a_round_scores_what_it_received_and_trains_it(tmp_path: Path) -> None:
    study = _study()
    received = _shared(study)
    site = Site(study, "a", SiteSettings(), tmp_path)
    result = site.train_round(0, received)
    assert result.update.samples == site.samples == 8  # 10 images of 5 patients; one patient validates
    # Adapters start at zero, so a down-projection changes from the second step on; a round has more than one.
    assert not [name for name, tensor in result.update.tensors.items() if torch.equal(tensor, received[name])]
    assert result.scores is not None
    assert result.scores["images"] == 2
    assert torch.isfinite(torch.tensor(result.train_loss))


@pytest.mark.slow
def test_a_task_releases_memory_and_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr(cpu_tuning, "release_memory", lambda: released.append("memory"))
    study = _study()
    site = Site(study, "a", SiteSettings(), tmp_path)
    site.train_round(0, _shared(study))
    assert released == ["memory"]
    assert all(parameter.grad is None for parameter in site.built.model.parameters())


@pytest.mark.slow
def test_a_new_process_for_every_round_gives_the_same_bits(tmp_path: Path) -> None:
    study = _study()
    received = _shared(study)
    site = Site(study, "a", SiteSettings(), tmp_path / "one")
    first = site.train_round(0, received).update.tensors
    second = site.train_round(1, first).update.tensors
    Site(study, "a", SiteSettings(), tmp_path / "new").train_round(0, received)
    again = Site(study, "a", SiteSettings(), tmp_path / "new").train_round(1, first).update.tensors
    assert all(torch.equal(second[name], again[name]) for name in second)
    # ... and so does a round that is repeated after a crash.
    repeated = Site(study, "a", SiteSettings(), tmp_path / "new").train_round(1, first).update.tensors
    assert all(torch.equal(second[name], repeated[name]) for name in second)


@pytest.mark.slow
def test_the_optimizer_state_persists_and_matters(tmp_path: Path) -> None:
    study = _study()
    received = _shared(study)
    Site(study, "a", SiteSettings(), tmp_path / "stored").train_round(0, received)
    with_state = Site(study, "a", SiteSettings(), tmp_path / "stored").train_round(1, received).update.tensors
    without = Site(study, "a", SiteSettings(), tmp_path / "fresh").train_round(1, received).update.tensors
    assert any(not torch.equal(with_state[name], without[name]) for name in with_state)


@pytest.mark.slow
def test_the_order_of_sites_does_not_matter(tmp_path: Path) -> None:
    study = _study()
    *_, one = rounds(study, ["a", "b", "unseen"], SiteSettings(), tmp_path / "one")
    *_, other = rounds(study, ["unseen", "b", "a"], SiteSettings(), tmp_path / "other")
    assert all(torch.equal(one.server.shared[name], other.server.shared[name]) for name in one.server.shared)
    assert set(one.results) == {"a", "b"}
    assert set(one.held_out) == {"unseen"}


def test_a_held_out_site_scores_all_its_images_and_writes_overlays(tmp_path: Path) -> None:
    study = _study()
    report = Site(study, "unseen", SiteSettings(), tmp_path).evaluate(_shared(study), overlays="final")
    assert (report["part"], report["images"], report["held_out"]) == ("all", 10, True)
    assert len(list((tmp_path / "overlays").glob("final_*.png"))) == 4


@pytest.mark.slow
def test_scores_of_single_images_stay_at_the_site(tmp_path: Path) -> None:
    site = Site(_study(), "unseen", SiteSettings(), tmp_path)
    shared = _shared(_study())
    report = site.evaluate(shared, overlays="final")
    path = tmp_path / "scores" / "final.json"
    stored = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert {key: stored[key] for key in ("format", "model", "part", "structures")} == {
        "format": 1, "model": "final", "part": "all", "structures": ["disc", "cup"],
    }  # fmt: skip
    dataset = site.data.dataset("all", input_px=32, mask_px=8)
    samples = [dataset[index] for index in range(10)]
    assert [(image["key"], image["case"]) for image in stored["images"]] == [(s["key"], s["case"]) for s in samples]
    for mode, metric in itertools.product(("standard", "fedfms"), ("dice", "iou")):
        values = [image["scores"][mode]["disc"][metric] for image in stored["images"]]
        known = [value for value in values if value is not None]
        assert report["scores"][mode]["disc"][metric] == pytest.approx(math.fsum(known) / len(known))
    text = json.dumps(report)
    assert not any(s["key"] in text or s["case"] in text for s in samples)
    site.evaluate(shared)  # as in a round, which writes nothing
    assert sorted(file.name for file in (tmp_path / "scores").iterdir()) == ["final.json"]


@pytest.mark.slow
@pytest.mark.parametrize(("study_asks", "site_asks"), [(3, 0), (1, 3), (3, 1)])
def test_scores_over_too_few_images_are_suppressed_but_stored_at_the_site(
    study_asks: int, site_asks: int, tmp_path: Path
) -> None:
    study = _study("fedmsa", f"federation.min_cases={study_asks}")
    site = Site(study, "a", SiteSettings(min_cases=site_asks), tmp_path)
    received = _shared(study)
    result = site.train_round(0, received)
    assert result.scores is not None
    assert (result.scores["images"], result.scores["dice"], result.scores["min_cases"]) == (2, None, 3)
    assert result.train_loss is not None  # over eight images
    scores = site.evaluate(received, overlays="final")["scores"]
    assert {row["dice"] for mode in ("standard", "fedfms") for row in scores[mode].values()} == {None}
    assert len(json.loads((tmp_path / "scores" / "final.json").read_text())["images"]) == 2
    state = StateStore(tmp_path / "state").load()
    assert state is not None
    assert state.best_dice is not None


def test_a_loss_over_too_few_images_is_suppressed(tmp_path: Path) -> None:
    study = _study("fedmsa", "federation.min_cases=9")
    assert Site(study, "a", SiteSettings(), tmp_path).train_round(0, _shared(study)).train_loss is None


@pytest.mark.parametrize(("min_cases", "known"), [(1, True), (3, False)])
def test_a_pool_suppresses_the_whole_if_it_suppresses_a_member(min_cases: int, known: bool, tmp_path: Path) -> None:
    """Two sites of two images each: the whole has four, but subtracting one site would reveal the other."""
    study = _study("msa", "sites=[a, b]", "held_out=[]", f"federation.min_cases={min_cases}")
    pool = Site(study, POOL, SiteSettings(), tmp_path)
    report = pool.evaluate(_shared(study), overlays="final")
    assert report["scores"]["images"] == 4
    assert (report["scores"]["dice"] is not None) is known
    assert [(report["by_site"][site]["scores"]["dice"] is not None) for site in "ab"] == [known, known]
    for site in "ab":
        stored = json.loads((tmp_path / site / "scores" / "final.json").read_text())
        assert len(stored["images"]) == 2


def test_a_model_of_another_study_is_rejected(tmp_path: Path) -> None:
    received = _shared(_study("fedsam"))
    with pytest.raises(CheckpointError, match="site a, round 0: .* not those of this study"):
        Site(_study("fedmsa"), "a", SiteSettings(), tmp_path).train_round(0, received)


def test_errors_name_the_site_and_the_round(tmp_path: Path) -> None:
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


def test_a_site_rejects_checkpoints_that_it_does_not_list(tmp_path: Path) -> None:
    """The file's own hash counts, whatever hash the study names."""
    study = load_study(PHANTOM, method="fedmsa", overrides=[*SMALL, "model.checkpoint=weights.pth"])
    (tmp_path / "weights.pth").write_bytes(b"weights that the job brought to the site's folder")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    settings = SiteSettings(checkpoints=tmp_path, checkpoint_sha256=("0" * 64,))
    for named in (study, replace(study, model=replace(study.model, checkpoint_sha256=digest))):
        with pytest.raises(CheckpointError, match="not among those that the site accepts"):
            checkpoint_path(named, settings)
    accepted = replace(settings, checkpoint_sha256=("0" * 64, digest))
    assert checkpoint_path(study, accepted) == tmp_path / "weights.pth"
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint_path(study, accepted)
