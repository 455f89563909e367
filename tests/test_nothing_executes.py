"""No loader runs code from a file: planted .pt, .npy and YAML files do not create their sentinel."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedfms.data.imagefile import read_image
from fedfms.experiments.plan import load_experiment
from fedfms.federation.state import ServerStateStore
from fedfms.inference.modelfile import read_model
from fedfms.models.checkpoints import read_state
from fedfms.preprocessing.nuclei_pannuke import Fold, read_tissues
from fedfms.preprocessing.pairrule import load_rule
from fedfms.provisioning.project import load_project
from fedfms.settings import SiteSettings, load_settings
from fedfms.study import load_study
from fedfms.training.build import build
from fedfms.training.prefix import PrefixCache
from fedfms.training.state import StateStore, read_tensors

from .conftest import REPO
from .methods.common import study

SENTINEL = "sentinel"


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._sentinel,)


def _plant(path: Path) -> Path:
    """Write a file of the kind of `path` that creates `SENTINEL` in its folder if a loader runs its code."""
    sentinel = path.parent / SENTINEL
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        torch.save({"format": 4, "model": _Touch(sentinel)}, path)
    elif path.suffix == ".npy":
        np.save(path, np.array([_Touch(sentinel)], dtype=object), allow_pickle=True)
    else:
        path.write_text(f"name: !!python/object/apply:builtins.open ['{sentinel}', w]\n")
    return path


def _prefix(folder: Path) -> None:
    built = build(study("fedmsa", "model.backbone=tiny_vit"), SiteSettings())
    cache = PrefixCache(built, folder)
    _plant(cache._folder / "key.npy")
    _into(cache._folder / SENTINEL, folder / SENTINEL, lambda: cache.features(torch.zeros(1, 3, 64, 64), ["key"]))


def _into(sentinel: Path, copy: Path, load: Callable[[], object]) -> None:
    """Run a loader that reads from its own folder; its sentinel counts as the test's."""
    try:
        load()
    finally:
        if sentinel.exists():
            copy.touch()


def _state(folder: Path) -> None:
    _plant(folder / "round_00000.pt")
    StateStore(folder).load()


LOADERS: dict[str, Callable[[Path], object]] = {
    "read_tensors": lambda folder: read_tensors(_plant(folder / "x.pt"), "it"),
    "read_tensors, lazily": lambda folder: read_tensors(_plant(folder / "x.pt"), "it", lazily=True),
    "StateStore": _state,
    "ServerStateStore": lambda folder: ServerStateStore(_plant(folder / "server.pt")).load(),
    "read_state": lambda folder: read_state(_plant(folder / "x.pt")),
    "read_model": lambda folder: read_model(_plant(folder / "x.pt")),
    "read_image": lambda folder: read_image(_plant(folder / "x.npy")),
    "read_tissues": lambda folder: read_tissues(Fold("f", folder, folder, _plant(folder / "types.npy"))),
    "load_study": lambda folder: load_study(_plant(folder / "x.yaml")),
    "load_settings": lambda folder: load_settings(named=_plant(folder / "x.yaml")),
    "load_experiment": lambda folder: load_experiment(str(_plant(folder / "x.yaml"))),
    "load_rule": lambda folder: load_rule(_plant(folder / "x.yaml")),
    "load_project": lambda folder: load_project(_plant(folder / "x.yml")),
}


@pytest.mark.parametrize("loader", sorted(LOADERS))
def test_a_planted_file_is_rejected_and_creates_no_sentinel(loader: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as error:  # noqa: B017, PT011 - each loader's own
        LOADERS[loader](tmp_path)
    assert not (tmp_path / SENTINEL).exists()
    assert str(tmp_path) not in str(error.value)


def test_a_planted_feature_is_computed_again_and_creates_no_sentinel(tmp_path: Path) -> None:
    _prefix(tmp_path)
    assert not (tmp_path / SENTINEL).exists()


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("x.pt", lambda path: torch.load(path, weights_only=False)),
        ("x.npy", lambda path: np.load(path, allow_pickle=True)),
        ("x.yaml", lambda path: yaml.unsafe_load(path.read_text())),
    ],
    ids=["pt", "npy", "yaml"],
)
def test_an_unsafe_loader_does_create_the_sentinel(name: str, load: Callable[[Path], object], tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    load(_plant(tmp_path / name))
    assert (tmp_path / SENTINEL).exists()


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """(name as written, call) of each call of an attribute in the packages."""
    for package in ("custom/fedfms", "preprocessing", "provisioning", "benchmarks"):
        for path in (REPO / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield ast.unparse(node.func), node


def test_the_packages_call_safe_loaders_only() -> None:
    """A new loader belongs into `LOADERS`."""
    safe = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
    found = dict.fromkeys(safe, 0)
    for name, call in _calls():
        assert name not in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load"), name
        if name in safe:
            found[name] += 1
            option, value = safe[name]
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            assert isinstance(given.get(option), ast.Constant) and given[option].value is value, ast.unparse(call)
    assert all(found.values())
