"""The Python interface: `import fedfms` is light, and each function does what its command does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedfms
from fedfms.errors import DataError, FedfmsError, ProvisioningError, StudyError
from fedfms.federation.inprocess import rounds
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
    with pytest.raises(StudyError, match="run holds a run of another study; name another folder"):
        fedfms.run(fedfms.load_study("phantom", rounds=5), tmp_path / "run")

    image = np.full((50, 70, 3), 128, np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "one.png")
    (outcome,) = fedfms.predict(result.model, tmp_path / "images", tmp_path / "masks")
    assert outcome.slices == 1
    assert Image.open(tmp_path / "masks" / "one_mask.png").size == (70, 50)
    assert "model.safetensors" in fedfms.export_model(result.model, tmp_path / "export", formats=["safetensors"])


def test_a_run_of_an_unknown_site_is_one_line(tmp_path: Path) -> None:
    study = fedfms.load_study("polyp", preset="tiny", sites=["nowhere"])
    with pytest.raises(FedfmsError, match="nowhere"):
        fedfms.run(study, tmp_path / "run", data_root=tmp_path)


def test_own_data_are_converted(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    (summary,) = fedfms.prepare("mine", raw, tmp_path / "data", site="here", workers=0)
    assert (summary.site, summary.cases, summary.faults) == ("here", 6, ())
    assert (tmp_path / "data" / "mine" / "here" / "manifest.json").is_file()
    with pytest.raises(DataError, match="mine is not a known data set; one of "):
        fedfms.prepare("mine", raw, tmp_path / "data")


def test_kits_of_a_wrong_project_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "project.yml").write_text("name: x\n")
    with pytest.raises(ProvisioningError):
        fedfms.make_kits(tmp_path / "project.yml", tmp_path / "out", "a long passphrase")
