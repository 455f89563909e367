"""Job folders: what is committed is what the builder makes, and what NVFLARE's own validator takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from fedfms.cli import main
from fedfms.errors import StudyError
from fedfms.flare.job import build_job
from fedfms.methods import METHODS
from fedfms.study import Study, load_study

ROOT = Path(__file__).parents[2]
PHANTOM = ROOT / "jobs" / "studies" / "phantom.yaml"


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".__nvfl_")
    }


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_committed_job_is_what_the_builder_makes(method: str, tmp_path: Path) -> None:
    assert main(["job", "build", method, "--study", "phantom", "--out", str(tmp_path / method)]) == 0
    assert _tree(tmp_path / method) == _tree(ROOT / "jobs" / method), "run `make jobs`"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_admin_consoles_validator_takes_it(method: str, tmp_path: Path) -> None:
    build_job(load_study(PHANTOM, method=method), tmp_path / method)
    valid, error, meta = JobMetaValidator().validate(method, zip_directory_to_bytes(str(tmp_path), method))
    assert valid, error
    assert meta["min_clients"] == 2


def test_named_sites_are_deployed_by_name_and_held_out_ones_do_not_train(tmp_path: Path) -> None:
    out = tmp_path / "job"
    code = main(
        ["job", "build", "fedmsa", "--study", "polyp", "--held-out", "polypgen_c5_oxford_uk", "--out", str(out)]
    )
    assert code == 0
    meta = json.loads((out / "meta.json").read_text())
    study = Study.from_dict(_study(out))
    assert study.held_out == ("polypgen_c5_oxford_uk",)
    assert "polypgen_c5_oxford_uk" not in study.sites
    assert meta["deploy_map"]["app"] == ["server", *study.sites, "polypgen_c5_oxford_uk"]
    assert meta["min_clients"] == 6


def test_a_checkpoint_leaves_its_name_and_hash_and_nothing_of_its_folder(tmp_path: Path) -> None:
    weights = tmp_path / "secret-folder" / "weights.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"not read here")
    out = tmp_path / "job"
    assert main(["job", "build", "fedmsa", "--study", "phantom", "--checkpoint", str(weights), "--out", str(out)]) == 0
    assert _study(out)["model"]["checkpoint"] == "weights.pth"
    assert len(_study(out)["model"]["checkpoint_sha256"]) == 64
    assert not any(b"secret-folder" in content for content in _tree(out).values())


def test_every_option_of_the_command_arrives(tmp_path: Path) -> None:
    out = tmp_path / "job"
    command = "job build fedsam --study polyp --preset paper --backbone vit_l --rounds 3 --seed 5 --sites a,b "
    command += f"--held-out c --set data.max_images=24 --set train.lr=1e-5 --out {out}"
    assert main(command.split()) == 0
    study = Study.from_dict(_study(out))
    assert (study.method, study.seed, study.sites, study.held_out) == ("fedsam", 5, ("a", "b"), ("c",))
    assert (study.model.backbone, study.model.input_px, study.train.batch_size) == ("vit_l", 1024, 6)
    assert (study.train.rounds, study.train.lr, study.data.max_images) == (3, 1e-5, 24)


def test_bundled_code_is_the_package(tmp_path: Path) -> None:
    out = build_job(load_study(PHANTOM), tmp_path / "job", bundle_code=True)
    bundled = out / "app" / "custom" / "fedfms"
    assert (bundled / "flare" / "executor.py").is_file()
    assert not list(bundled.rglob("__pycache__"))


def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    for command, says in [
        ("job build fedmagic --study phantom", "unknown method 'fedmagic'; one of"),
        ("job build fedmsa --study nowhere", "no study 'nowhere'"),
        ("job build fedmsa --study phantom --backbone vit_x", "unknown backbone 'vit_x'"),
        ("job build fedmsa --study phantom --checkpoint none.pth", "cannot read checkpoint none.pth"),
        ("job build fedmsa --study phantom --set train.round=1", "did you mean 'rounds'?"),
    ]:
        assert main([*command.split(), "--out", str(tmp_path / "job")]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    with pytest.raises(StudyError, match="holds no job"):
        build_job(load_study(PHANTOM), tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "keep me"


def _study(job: Path) -> dict[str, object]:
    config = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    study: dict[str, object] = config["executors"][0]["executor"]["args"]["study"]
    return study
