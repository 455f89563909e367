"""NVFLARE recipes: the exported job, the clients of an environment, and changes that would have no effect."""

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nvflare.recipe import ProdEnv, SimEnv
from nvflare.recipe.session_mgr import SessionManager

import fedfms
from fedfms.cli import main
from fedfms.errors import StudyError


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("method", ["fedmsa", "fedsca", "fedunet", "local", "msa"])
def test_an_exported_job_is_the_one_of_job_build(method: str, tmp_path: Path) -> None:
    fedfms.recipe(method, study="phantom", rounds=3, sites=["a", "b"], name="mine").export(str(tmp_path))
    options = ["--study", "phantom", "--rounds", "3", "--sites", "a,b", "--out", str(tmp_path / "built" / "mine")]
    assert main(["job", "build", method, *options]) == 0
    names = _files(tmp_path / "built" / "mine")
    assert names == _files(tmp_path / "mine")
    assert filecmp.cmpfiles(tmp_path / "mine", tmp_path / "built" / "mine", names, shallow=False) == (names, [], [])


def test_a_recipe_takes_a_study_object() -> None:
    study = fedfms.load_study("phantom", overrides={"train.rounds": 2})
    made = fedfms.recipe("fedsca", study=study)
    assert (made.name, made.study.method, made.study.train.rounds) == ("phantom-fedsca", "fedsca", 2)


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


def test_execution_parameters_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no components to change"):
        fedfms.recipe("fedmsa", study="phantom").export(str(tmp_path), server_exec_params={"a": 1})


def test_clients_that_are_not_the_sites_of_the_study_are_an_error(tmp_path: Path) -> None:
    made = fedfms.recipe("fedmsa", study="phantom", sites=["a", "b"], held_out=["c"])
    with pytest.raises(StudyError, match=r"use SimEnv\(clients=\['a', 'b', 'c'\]\)"):
        made.run(SimEnv(num_clients=3, workspace_root=str(tmp_path)))


def test_simulated_clients_are_the_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fedfms.recipe("fedmsa", study="phantom", held_out=[])
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


def test_a_production_environment_submits_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionManager, "_get_session", lambda _: _Session(tmp_path / "sent"))
    made = fedfms.recipe("fedsca", study="phantom", name="mine")
    assert made.run(ProdEnv(startup_kit_location=str(tmp_path))).get_job_id() == "id"
    made.export(str(tmp_path))
    assert _files(tmp_path / "sent") == _files(tmp_path / "mine")
    assert json.loads((tmp_path / "sent" / "meta.json").read_text())["name"] == "mine"


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(StudyError, match="unknown method 'fedmas'"):
        fedfms.recipe("fedmas", study="phantom")
