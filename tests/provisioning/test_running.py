"""Processes of kits, with scripts that stand in for NVFLARE's: what is started is ended."""

from __future__ import annotations

import stat
from pathlib import Path

import psutil
import pytest
import yaml

from fedfms.errors import ProvisioningError
from provisioning.federation import Running, free_port, local_project
from provisioning.project import load_project


def _kit(folder: Path, script: str) -> Path:
    (folder / "startup").mkdir(parents=True)
    (folder / "startup" / "sub_start.sh").write_text(f"echo started\n{script}\n")
    return folder


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_what_was_started_is_ended_with_its_children_whatever_happens(tmp_path: Path) -> None:
    before = _children()
    kits = {
        "a": _kit(tmp_path / "a", "sleep 600 & sleep 600"),
        "b": _kit(tmp_path / "b", "trap '' TERM; sleep 600 & wait; sleep 600"),  # one that does not want to end
    }
    with pytest.raises(KeyError), Running(kits) as running:
        for name in kits:
            running.start(name)
        running.wait("both", lambda: all("started" in running.log(name) for name in kits), 60)
        assert _children() - before
        raise KeyError("a fault of a test")
    assert not _children() - before


def test_one_that_ends_by_itself_is_told_and_not_waited_for(tmp_path: Path) -> None:
    with Running({"a": _kit(tmp_path / "a", "exit 3")}) as running:
        running.start("a")
        with pytest.raises(ProvisioningError, match="a ended"):
            running.wait("the end", lambda: False, 60)


def test_the_wait_has_an_end(tmp_path: Path) -> None:
    with Running({"a": _kit(tmp_path / "a", "sleep 600")}) as running:
        running.start("a")
        with pytest.raises(ProvisioningError, match="not within 0 s"):
            running.wait("nothing", lambda: False, 0)


def test_what_a_process_prints_is_its_owners(tmp_path: Path) -> None:
    with Running({"a": _kit(tmp_path / "a", "sleep 600")}) as running:
        running.start("a")
        assert stat.S_IMODE((tmp_path / "a" / "console.log").stat().st_mode) == 0o600


def test_the_project_of_this_machine_is_a_project_on_a_free_port(tmp_path: Path) -> None:
    content = local_project(["site-1"], [tmp_path / "job"], {"admin@lead.example": "project_admin"})
    (tmp_path / "project.yml").write_text(yaml.safe_dump(content))
    project = load_project(tmp_path / "project.yml")
    assert project.server["name"] == "localhost" and project.server["fed_learn_port"] != free_port()
    assert project.jobs == (tmp_path / "job",)
