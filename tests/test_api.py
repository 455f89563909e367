"""The Python interface: `import fedfms` is light, and each function does what its command does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedfms
from fedfms.errors import CheckpointError, DataError, FedfmsError, ProvisioningError, SettingsError, StudyError
from fedfms.federation.inprocess import rounds
from fedfms.provisioning.project import TEMPLATE
from tests.preprocessing.make import make_raw

SMALL = {"data.phantom_images": 10, "data.phantom_px": 64, "model.input_px": 64, "federation.min_cases": 1}


def test_importing_the_package_imports_neither_torch_nor_nvflare() -> None:
    code = "import fedfms, sys; assert 'run' in dir(fedfms); print({'torch', 'nvflare', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_every_name_is_documented() -> None:
    assert all(getattr(fedfms, name).__doc__ for name in fedfms.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        fedfms.nosuch  # noqa: B018


def test_a_study_is_resolved_for_its_method() -> None:
    study = fedfms.load_study("phantom", "fedunet", rounds=3, sites=["a"], seed=7, overrides={"train.lr": 0.5})
    assert (study.model.backbone, study.train.rounds, study.sites, study.seed) == ("unet_tiny", 3, ("a",), 7)
    assert study.train.lr == 0.5


def test_an_override_may_be_none_or_a_small_number() -> None:
    overrides = {"data.phantom_images": 7, "data.max_images": 5, "train.lr": 1e-5}
    assert fedfms.load_study("phantom", overrides=overrides).data.max_images == 5
    study = fedfms.load_study("phantom", overrides={**overrides, "data": {"max_images": None}})
    assert (study.data.max_images, study.data.phantom_images, study.train.lr) == (None, 7, 1e-5)


def test_a_held_out_site_does_not_train() -> None:
    sites = fedfms.load_study("polyp").sites
    study = fedfms.load_study("polyp", held_out=sites[:1])
    assert (study.sites, study.held_out) == (sites[1:], sites[:1])


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"overrides": {"train.nosuch": 1}}, "unknown key 'nosuch' in train"),
        ({"overrides": {1: 1}}, "unknown key '1'"),
        ({"rounds": "many"}, "train.rounds: expected int"),
        ({"sites": "ab"}, r"sites is one text; write a list: sites=\['ab'\]"),
        ({"method": "fedmas"}, "unknown method 'fedmas'"),
        ({"preset": "nosuch"}, "unknown preset 'nosuch'"),
        ({"checkpoint": "missing.pth"}, "cannot read checkpoint missing.pth"),
    ],
)
def test_a_wrong_study_is_one_line(values: dict[str, Any], error: str) -> None:
    with pytest.raises(StudyError, match=error):
        fedfms.load_study("phantom", **values)


@pytest.mark.slow
def test_a_checkpoint_is_checked_when_the_study_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="bad.pth"):
        fedfms.load_study("phantom", checkpoint=tmp_path / "bad.pth")


@pytest.mark.slow
def test_the_rounds_of_a_run_are_those_of_the_loop_and_a_finished_run_is_read_again(tmp_path: Path) -> None:
    study = fedfms.load_study("phantom", sites=["a", "b"], held_out=["c"], rounds=2, overrides=SMALL)
    seen: list[int] = []
    result = fedfms.run(study, tmp_path / "run", on_round=lambda round_, dice: seen.append(round_))
    *_, last = rounds(study, ["a", "b", "c"], fedfms.SiteSettings(), tmp_path / "reference")
    assert seen == [0, 1]
    assert result.curve[1]["dice"]["a"] == (last.results["a"].scores or {})["dice"]
    assert set(result.dice()) == {"a", "b", "c"}
    again = fedfms.run(study, tmp_path / "run", on_round=lambda *_: pytest.fail("it ran again"))
    assert again == result
    assert result.site_model("a") == result.model
    image = np.full((50, 70, 3), 128, np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "one.png")
    (outcome,) = fedfms.predict(result.model, tmp_path / "images", tmp_path / "masks")
    assert outcome.slices == 1
    assert Image.open(tmp_path / "masks" / "one_mask.png").size == (70, 50)
    assert "model.safetensors" in fedfms.export_model(result.model, tmp_path / "export", formats=["safetensors"])
    with pytest.raises(SettingsError, match=r"unknown formats \['zip'\]; some of "):
        fedfms.export_model(result.model, tmp_path / "other", formats=["zip"])


@pytest.mark.slow
def test_a_stopped_run_is_resumed_by_its_own_study_only(tmp_path: Path) -> None:
    def load(seed: int) -> fedfms.Study:
        return fedfms.load_study("phantom", "fedsca", sites=["a"], held_out=[], rounds=2, seed=seed, overrides=SMALL)

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        fedfms.run(load(0), tmp_path / "run", on_round=stop)
    with pytest.raises(StudyError, match="run holds a run of another study; name another folder"):
        fedfms.run(load(1), tmp_path / "run")
    seen: list[int] = []
    result = fedfms.run(load(0), tmp_path / "run", on_round=lambda round_, _: seen.append(round_))
    assert seen == [1]
    assert result.site_model("a") == tmp_path / "run" / "a" / "models" / "personal_final.pt"
    with pytest.warns(UserWarning, match="the shared tensors only"):
        fedfms.export_model(result.model, tmp_path / "export", formats=["safetensors"])


def test_a_run_does_not_mix_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(StudyError, match="contains something other than a run; name another folder"):
        fedfms.run(fedfms.load_study("phantom"), tmp_path)
    assert not (tmp_path / "server.pt").exists()


def test_a_run_of_an_unknown_site_is_one_line(tmp_path: Path) -> None:
    study = fedfms.load_study("polyp", preset="tiny", sites=["nowhere"])
    with pytest.raises(FedfmsError, match="nowhere"):
        fedfms.run(study, tmp_path / "run", data_root=tmp_path)


def test_own_data_are_converted(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    (summary,) = fedfms.prepare("pairs", raw, tmp_path / "data", dataset="fundus", site="here", workers=0)
    assert (summary.site, summary.cases, summary.faults) == ("here", 6, ())
    assert (tmp_path / "data" / "fundus" / "here" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("source", "values", "error"),
    [
        ("mine", {}, "unknown data set 'mine'; `pairs` for your own, or one of "),
        ("pairs", {"dataset": "mine"}, "pairs: site cannot be None"),
        ("pairs", {"dataset": "a/b", "site": "here"}, "pairs: dataset cannot be 'a/b'"),
        (
            "pairs",
            {"dataset": "mine", "site": "here", "eye": 1},
            r"unknown options \['eye'\]; write them into the rule",
        ),
        ("fundus", {"eye": "left"}, "fundus: unrecognized arguments: --eye=left; see `fedfms prepare fundus --help`"),
        ("fundus", {"experts": 7}, "argument --experts: invalid choice: 7"),
        ("fundus", {"rule": "rule.yaml"}, "dataset and rule belong to your own data"),
        ("fundus", {"site": "nowhere"}, "no site 'nowhere' in raw"),
        ("hippocampus", {}, "raw"),
    ],
)
def test_wrong_calls_of_prepare_are_one_line(source: str, values: dict[str, Any], error: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=error):
        fedfms.prepare(source, tmp_path / "raw", tmp_path / "data", **values)
    with pytest.raises(DataError):
        fedfms.prepare(source, tmp_path / "nowhere", tmp_path / "data", **values)


def test_a_job_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(StudyError, match="notes contains something other than a job of this package"):
        fedfms.build_job(fedfms.load_study("phantom"), tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_kits_of_a_wrong_project_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "project.yml").write_text("name: x\n")
    with pytest.raises(ProvisioningError):
        fedfms.make_kits(tmp_path / "project.yml", tmp_path / "out", "a long passphrase")


def test_a_short_passphrase_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProvisioningError, match="the passphrase is too short; use at least 12 characters"):
        fedfms.make_kits(TEMPLATE, tmp_path / "out", "short")
    assert not (tmp_path / "out").exists()
