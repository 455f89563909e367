"""Every packaged study fits its converter's output, and runs on the phantom without data."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from fedfms.cli import main, make_parser
from fedfms.data import open_site
from fedfms.federation.inprocess import rounds
from fedfms.preprocessing.registry import DATASETS
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, Study, load_study

STUDY_FILES = sorted(STUDIES.glob("*.yaml"))
ALL = pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.stem)
TINY = ["model.input_px=64", "data.phantom_images=4", "data.phantom_px=64", "train.local_epochs=1",
        "train.batch_size=2", "federation.min_cases=1"]  # fmt: skip


def test_every_registered_data_set_has_a_study() -> None:
    missing = DATASETS.keys() - {load_study(path).data.dataset for path in STUDY_FILES}
    assert not missing, f"add custom/fedfms/studies/<name>.yaml for {sorted(missing)}"


@ALL
def test_a_study_fits_its_converters_output(path: Path) -> None:
    study = load_study(path)
    values = {value for structure in study.data.structures for value in structure.values}
    assert values <= {1, 2}, "the phantom has only these label values"
    if study.data.dataset == "phantom":
        return
    recipe = DATASETS[study.data.dataset].recipe(
        make_parser().parse_args(["prepare", path.stem, "--raw", "R", "--out", "O"])
    )
    assert recipe.dataset == study.data.dataset
    assert values <= {structure.value for structure in recipe.structures}
    about = DATASETS[study.data.dataset].about
    known = getattr(importlib.import_module(f"fedfms.preprocessing.{path.stem}"), "SITES", about.split())
    assert [site for site in (*study.sites, *study.held_out) if site not in known or site not in about] == []


def _phantom_job(path: Path, folder: Path) -> Study:
    """The study of a small job built with --phantom."""
    sets = [part for text in TINY for part in ("--set", text)]
    command = ["job", "build", "fedmsa", "--study", str(path), "--phantom", "--backbone", "vit_tiny", "--rounds", "1"]
    assert main([*command, *sets, "--out", str(folder / "job")]) == 0
    config = json.loads((folder / "job" / "app" / "config" / "config_fed_client.json").read_text())
    return Study.from_dict(config["executors"][0]["executor"]["args"]["study"])


@ALL
def test_a_study_trains_on_its_phantom(path: Path, tmp_path: Path) -> None:
    """One round at two sites: slices and structures are the study's, losses are finite."""
    study = _phantom_job(path, tmp_path)
    assert study.structure_names == load_study(path).structure_names
    sites = (*study.sites, "a", "b")[:2]
    for site in sites:
        data = open_site(study, site, SiteSettings())
        assert len(data.parts["all"]) == 4
        sample = data.dataset("all", input_px=64, mask_px=16)[0]
        assert sample["image"].shape == (3, 64, 64)
        assert sample["label"].shape == (len(study.structure_names), 16, 16)
        assert sample["label"].amax(dim=(1, 2)).tolist() == [1.0] * len(study.structure_names)
    (done,) = rounds(study, sites, SiteSettings(), tmp_path / "state")
    assert done.results.keys() == set(sites)
    for result in done.results.values():
        assert np.isfinite(result.train_loss)
        assert result.update.samples == 2
    before = done.received[sites[0]]
    assert any(not np.array_equal(before[name], tensor) for name, tensor in done.server.shared.items())
