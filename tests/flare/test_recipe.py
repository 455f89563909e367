"""NVFLARE recipes: the exported job, the clients of an environment, and changes that would have no effect."""

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nvflare.recipe import PocEnv, ProdEnv, SimEnv, add_experiment_tracking
from nvflare.recipe.session_mgr import SessionManager

import fedfms
from fedfms.cli import main
from fedfms.errors import StudyError
from fedfms.flare.submit import stage


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _same(one: Path, other: Path) -> None:
    names = _files(one)
    assert names == _files(other)
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize(
    ("method", "study", "values", "options"),
    [
        ("fedmsa", "phantom", {"rounds": 3, "sites": ["a", "b"]}, ["--rounds", "3", "--sites", "a,b"]),
        ("fedsca", "phantom", {"seed": 5}, ["--seed", "5"]),
        ("fedunet", "phantom", {"overrides": {"train.lr": 1e-5}}, ["--set", "train.lr=1.0e-5"]),
        ("local", "phantom", {"preset": "paper"}, ["--preset", "paper"]),
        ("msa", "phantom", {}, []),
        ("unet", "phantom", {"held_out": ["site-2"]}, ["--held-out", "site-2"]),
        ("fedala", "polyp", {"held_out": ["polypgen_c5_oxford_uk"]}, ["--held-out", "polypgen_c5_oxford_uk"]),
    ],
)
def test_an_exported_job_is_the_one_of_job_build(
    method: str, study: str, values: dict[str, Any], options: list[str], tmp_path: Path
) -> None:
    fedfms.recipe(method, study=study, name="mine", **values).export(str(tmp_path))
    built = tmp_path / "built" / "mine"
    assert main(["job", "build", method, "--study", study, *options, "--out", str(built)]) == 0
    _same(built, tmp_path / "mine")


def test_a_recipe_takes_a_loaded_study() -> None:
    made = fedfms.recipe("fedsca", study=fedfms.load_study("phantom", "fedsca", rounds=2))
    assert (made.name, made.study.method, made.study.train.rounds) == ("phantom-fedsca", "fedsca", 2)


@pytest.mark.parametrize(("method", "values"), [("fedmsa", {}), ("fedsca", {"rounds": 1}), ("fedsca", {"sites": []})])
def test_what_a_loaded_study_would_ignore_is_an_error(method: str, values: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="loaded already, for method fedsca; give its method, rounds"):
        fedfms.recipe(method, study=fedfms.load_study("phantom", "fedsca"), **values)


def test_a_name_that_nvflare_rejects_is_an_error() -> None:
    with pytest.raises(StudyError, match="the job cannot be named 'a b'; name it with letters"):
        fedfms.recipe("fedmsa", study="phantom", name="a b")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add_client_config", ({"a": 1},)),
        ("add_server_config", ({"a": 1},)),
        ("add_client_file", ("file.py",)),
        ("add_server_file", ("file.py",)),
        ("add_decomposers", (["nvflare.app_opt.pt.decomposers.TensorDecomposer"],)),
        ("add_client_input_filter", (object(),)),
        ("add_client_output_filter", (object(),)),
        ("add_server_input_filter", (object(),)),
        ("add_server_output_filter", (object(),)),
        ("enable_log_streaming", ("log.txt",)),
        ("enable_tensor_streaming", ()),
        ("set_per_site_config", ({"site-1": {"a": 1}},)),
    ],
)
def test_a_change_of_components_is_an_error(
    name: str, arguments: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.py").touch()
    with pytest.raises(StudyError, match="no components to change; change the study"):
        getattr(fedfms.recipe("fedmsa", study="phantom"), name)(*arguments)


def test_tracking_of_nvflare_is_an_error() -> None:
    with pytest.raises(StudyError, match="no components to change"):
        add_experiment_tracking(fedfms.recipe("fedmsa", study="phantom"), "tensorboard")


@pytest.mark.parametrize("whose", ["server", "client"])
def test_execution_parameters_are_an_error(whose: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no components to change"):
        fedfms.recipe("fedmsa", study="phantom").export(str(tmp_path), **{f"{whose}_exec_params": {"a": 1}})
    assert _files(tmp_path) == []


@pytest.mark.parametrize("env", [SimEnv, PocEnv])
def test_clients_that_are_not_the_sites_of_the_study_are_an_error(env: type[SimEnv | PocEnv], tmp_path: Path) -> None:
    made = fedfms.recipe("fedmsa", study="phantom", sites=["a", "b"], held_out=["c"])
    folder = {"workspace_root": str(tmp_path)} if env is SimEnv else {}
    advice = rf"use {env.__name__}\(num_clients=3, clients=\['a', 'b', 'c'\]\)"
    with pytest.raises(StudyError, match=advice):
        made.run(env(num_clients=3, **folder))
    assert list(tmp_path.iterdir()) == []


def test_a_blank_in_the_path_of_the_simulator_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot use a folder with a blank in its path"):
        fedfms.recipe("fedmsa", study="phantom").run(SimEnv(num_clients=3, workspace_root=str(tmp_path / "a b")))


def test_too_few_clients_that_train_are_an_error(tmp_path: Path) -> None:
    made = fedfms.recipe("fedmsa", study="phantom", overrides={"federation.min_sites": 2})
    with pytest.raises(StudyError, match=r"needs 2 sites that train, and the environment has 1; .*\(num_clients=3\)"):
        made.run(SimEnv(clients=["site-1", "site-4"], workspace_root=str(tmp_path)))


def test_simulated_clients_are_the_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fedfms.recipe("fedmsa", study="phantom")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(made._study_job.job, "simulator_run", lambda workspace, **given: asked.update(given) or 0)
    made.run(SimEnv(num_clients=2, workspace_root=str(tmp_path)))
    assert asked == {"clients": "site-1,site-2", "n_clients": 2, "threads": 2, "gpu": None, "log_config": None}


class _Session:
    """NVFLARE's session, which copies what is submitted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def submit_job(self, path: str) -> str:
        shutil.copytree(path, self._folder)
        return "id"

    def close(self) -> None:
        pass


def test_a_production_environment_gets_what_submit_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's policy rejects a job with an `app/custom` folder; the same recipe still exports it."""
    monkeypatch.setattr(SessionManager, "_get_session", lambda _: _Session(tmp_path / "sent"))
    made = fedfms.recipe("fedsca", study="phantom", name="mine")
    assert made.run(ProdEnv(startup_kit_location=str(tmp_path))).get_job_id() == "id"
    made.export(str(tmp_path))
    _same(stage(tmp_path / "mine", tmp_path / "staged" / "mine"), tmp_path / "sent")
    assert not (tmp_path / "sent" / "app" / "custom").exists()
    assert (tmp_path / "mine" / "app" / "custom").exists()
    assert json.loads((tmp_path / "sent" / "meta.json").read_text())["name"] == "mine"


@pytest.mark.slow
def test_no_command_imports_the_module_that_changes_the_command_line(tmp_path: Path) -> None:
    code = """
import sys
from fedfms.cli import main
for words in (["list"], ["job", "build", "fedmsa", "--study", "phantom", "--out", "job"]):
    assert main(words) == 0
found = [name for name in sys.modules if name.startswith("nvflare.recipe")]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(StudyError, match="unknown method 'fedmas'"):
        fedfms.recipe("fedmas", study="phantom")
