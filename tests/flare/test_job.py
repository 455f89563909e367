"""Job folders: the committed ones equal the builder's, and NVFLARE's own validator accepts them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from fedfms.cli import main
from fedfms.errors import StudyError
from fedfms.flare.job import _server, build_job, read_study
from fedfms.methods import METHODS
from fedfms.models import build_model
from fedfms.study import STUDIES, Study, load_study

ROOT = Path(__file__).parents[2]
PHANTOM = STUDIES / "phantom.yaml"
POLYP = PHANTOM.with_name("polyp.yaml")


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".__nvfl_")
    }


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_committed_job_equals_the_built_one(method: str, tmp_path: Path) -> None:
    assert main(["job", "build", method, "--study", "phantom", "--out", str(tmp_path / method)]) == 0
    assert _tree(tmp_path / method) == _tree(ROOT / "jobs" / method), "run `make jobs`"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_admin_consoles_validator_accepts_it(method: str, tmp_path: Path) -> None:
    assert main(["job", "build", method, "--study", "phantom", "--out", str(tmp_path / method)]) == 0
    valid, error, meta = JobMetaValidator().validate(method, zip_directory_to_bytes(str(tmp_path), method))
    assert valid, error
    assert meta["min_clients"] == (1 if METHODS[method].centralised else 2)


def test_named_sites_are_deployed_by_name_and_held_out_sites_do_not_train(tmp_path: Path) -> None:
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


def test_a_job_contains_a_checkpoints_name_and_hash_but_not_its_folder(tmp_path: Path) -> None:
    weights = tmp_path / "secret-folder" / "weights.pth"
    weights.parent.mkdir()
    _write_weights(weights)
    out = tmp_path / "job"
    assert main(["job", "build", "fedmsa", "--study", "phantom", "--checkpoint", str(weights), "--out", str(out)]) == 0
    assert _study(out)["model"]["checkpoint"] == "weights.pth"
    assert len(_study(out)["model"]["checkpoint_sha256"]) == 64
    assert not any(b"secret-folder" in content for content in _tree(out).values())


def test_a_checkpoint_that_does_not_fit_is_an_error_before_a_job_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "w.pth", tmp_path / "job"
    command = ["job", "build", "fedmsa", "--study", "phantom", "--checkpoint", str(weights), "--out", str(out)]
    weights.write_bytes(b"no tensors")
    assert main(command) == 1
    assert "w.pth: not a file of plain tensors" in capsys.readouterr().err
    _write_weights(weights)
    assert main([*command, "--backbone", "vit_b"]) == 1
    assert "w.pth" in capsys.readouterr().err
    assert not out.exists()


def test_every_option_reaches_the_study(tmp_path: Path) -> None:
    out = tmp_path / "job"
    a, b, c = "cvc_clinicdb_barcelona_es", "polypgen_c1_paris_fr", "polypgen_c5_oxford_uk"
    command = f"job build fedsam --study polyp --preset paper --backbone vit_l --rounds 3 --seed 5 --sites {a},{b} "
    command += f"--held-out {c} --set data.max_images=24 --set train.lr=1e-5 --out {out}"
    assert main(command.split()) == 0
    study = Study.from_dict(_study(out))
    assert (study.method, study.seed, study.sites, study.held_out) == ("fedsam", 5, (a, b), (c,))
    assert (study.model.backbone, study.model.input_px, study.train.batch_size) == ("vit_l", 1024, 6)
    assert (study.train.rounds, study.train.lr, study.data.max_images) == (3, 1e-5, 24)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(["data.max_images=24"], "of 24 images a site scores about 2, "),
     (["data.phantom_images=35"], "or use --set federation.min_cases=3 "),  # a tenth is 3.5, rounded down
     (["data.max_images=24", "federation.min_cases=2"], ""),
     (["data.max_images=24", "data.protocol=personal"], ""), ([], "")],
    ids=["few", "small phantom", "low minimum", "a fifth", "the study's own"],
)  # fmt: skip
def test_a_note_warns_of_scores_that_will_be_suppressed(
    settings: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for one in settings for word in ("--set", one)]
    assert main(["job", "build", "fedmsa", "--study", "phantom", *sets, "--out", str(tmp_path / "job")]) == 0
    _, *notes = capsys.readouterr().out.splitlines()
    assert len(notes) == (expected != "")
    assert all(expected in note for note in notes)


@pytest.mark.slow
def test_jobs_of_one_study_print_the_note_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"job build all --study phantom --set data.max_images=24 --out {tmp_path}"
    assert main(command.split()) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "--set" not in notes[0]  # a mean over two images nearly discloses each


def test_bundled_code_is_this_package(tmp_path: Path) -> None:
    out = build_job(load_study(PHANTOM), tmp_path / "job", bundle_code=True)
    bundled = out / "app" / "custom" / "fedfms"
    assert (bundled / "flare" / "executor.py").is_file()
    assert not [path for path in bundled.rglob("*") if path.suffix in (".pyc", ".so")]  # compiled on this machine


def _write_weights(path: Path) -> None:
    """Weights that fit the phantom study."""
    model = build_model(replace(load_study(PHANTOM).model, prompt="learned"), 1, adapters=False, seed=9)
    torch.save(model.state_dict(), path)


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, says in [
        ("job build fedmagic --study phantom", "unknown method 'fedmagic'; one of"),
        ("job build fedmsa --study nowhere", "no study 'nowhere'"),
        ("job build fedmsa --study phantom --backbone vit_x", "unknown backbone 'vit_x'"),
        ("job build fedmsa --study phantom --checkpoint none.pth", "cannot read checkpoint none.pth"),
        ("job build fedmsa --study phantom --set train.round=1", "did you mean 'rounds'?"),
        ("job build fedmsa --study phantom --set train.lr=[1", "override 'train.lr=[1' is not key=value"),
        ("job build fedmsa --study polyp --held-out cvc_clinicdb", "names ['cvc_clinicdb'], which the study does not"),
        ("job build fedmsa --study polyp --sites a,b", "or --set sites=[a,b] for sites of your own"),
        ("job build fedmsa --study polyp --sites 1,no", """or --set 'sites=["1", "no"]' for sites of your own"""),
        ("job build fedmsa --study polyp --held-out a", "or --set held_out=[a] for sites of your own"),
        ("job build fedmsa --study phantom --sites a --held-out a", "both train and are held out"),
    ]:
        assert main([*command.split(), "--out", str(tmp_path / "job")]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def test_other_sites_can_be_named_as_the_error_suggests(tmp_path: Path) -> None:
    out = tmp_path / "job"
    own = ["--set", "sites=[a,b]", "--set", "held_out=[c]"]
    assert main(["job", "build", "fedmsa", "--study", "polyp", *own, "--backbone", "vit_tiny", "--out", str(out)]) == 0
    assert (read_study(out).sites, read_study(out).held_out) == (("a", "b"), ("c",))


def test_the_initial_weights_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "w.pth"
    _write_weights(weights)
    command = ["job", "build", "fedmsa", "--study", "phantom", "--out", str(tmp_path / "job")]
    tokens = "(prompt tokens of a box around the whole image: its decoder was trained with prompts)"
    for more, start in [
        ([], "random weights"),
        (["--checkpoint", str(weights)], f"w.pth {tokens}"),
        (["--checkpoint", str(weights), "--set", "model.prompt=none"], "w.pth"),
    ]:
        assert main([*command, *more]) == 0
        assert f"fedmsa on phantom, vit_tiny at 128 px from {start}; 8 rounds" in capsys.readouterr().out


def test_a_round_also_waits_for_held_out_sites_and_ends() -> None:
    """NVFLARE counts all answers: with `min_clients` of the training sites, a held-out site could end a round early."""
    study = load_study(POLYP, held_out=["d"], sites=["a", "b", "c"], **{"federation.min_sites": 2})
    (train, _) = _server(study, {})["workflows"]
    assert train["args"]["min_clients"] == 3
    assert train["args"]["train_timeout"] == 86_400


def test_no_best_model_is_selected_on_test_images(tmp_path: Path) -> None:
    for protocol, chosen in (("held-out", True), ("personal", False)):
        job = build_job(load_study(PHANTOM, overrides=[f"data.protocol={protocol}"]), tmp_path / protocol)
        assert ("AcceptedModelSelector" in (job / "app" / "config" / "config_fed_server.json").read_text()) == chosen


def test_live_curves_are_nvflares_and_can_be_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def components(tracking: str) -> list[str]:
        folder = build_job(load_study(PHANTOM, overrides=[f"federation.tracking={tracking}"]), tmp_path / tracking)
        configs = [json.loads(path.read_text()) for path in sorted((folder / "app" / "config").iterdir())]
        return [each["path"] for config in configs for each in config["components"] if each["id"] == "tracking"]

    sender = "fedfms.flare.tracking.Curves"
    assert components("none") == []
    assert components("tensorboard") == [sender, "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver"]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    assert components("mlflow") == [sender, "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"MLflow is not installed; install fedfms\[mlflow\]"):
        components("mlflow")


def test_a_study_with_all_sites_held_out_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sites = ",".join(load_study(POLYP).sites)
    assert main(["job", "build", "fedmsa", "--study", "polyp", "--held-out", sites, "--out", str(tmp_path / "job")])
    assert "every site is held out" in capsys.readouterr().err


def test_only_a_job_of_this_package_is_replaced(tmp_path: Path) -> None:
    study = load_study(PHANTOM)
    for name, others in (("thesis", {}), ("foreign", {"meta.json": "{}"}), ("touched", None)):
        folder = tmp_path / name
        if others is None:  # our job with an additional file
            build_job(study, folder)
        else:
            folder.mkdir()
            for file, content in others.items():
                (folder / file).write_text(content)
        mine = folder / ("app/custom/thesis.txt" if others is None else "thesis.txt")
        mine.write_text("keep me")
        with pytest.raises(StudyError, match="other than a job of this package"):
            build_job(study, folder)
        assert mine.read_text() == "keep me"


def test_a_job_is_replaced_completely_and_links_are_followed(tmp_path: Path) -> None:
    out = build_job(load_study(PHANTOM), tmp_path / "job", bundle_code=True)
    (out / ".__nvfl_sig.json").write_text("{}")  # NVFLARE writes it at submission
    (tmp_path / "link").symlink_to(out)
    build_job(load_study(PHANTOM, seed=3), tmp_path / "link")
    assert _study(out)["seed"] == 3
    assert not (out / "app" / "custom" / "fedfms").exists()
    assert "holds no code" in (out / "app" / "custom" / "README.txt").read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["job", "link"]


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "job"):
        with pytest.raises(StudyError, match="job build: ") as caught:
            build_job(load_study(PHANTOM), out)
        assert str(tmp_path) not in str(caught.value)


def _study(job: Path) -> dict[str, object]:
    config = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    study: dict[str, object] = config["executors"][0]["executor"]["args"]["study"]
    return study


def test_pooled_data_of_the_phantom_exclude_the_held_out_site(tmp_path: Path) -> None:
    out = tmp_path / "job"
    assert main(["job", "build", "msa", "--study", "phantom", "--held-out", "site-3", "--out", str(out)]) == 0
    study = Study.from_dict(_study(out))
    assert (study.sites, study.held_out) == (("site-1", "site-2"), ("site-3",))
    assert json.loads((out / "meta.json").read_text())["deploy_map"]["app"] == ["server", "pool", "site-3"]
