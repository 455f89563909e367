"""A federation that is made once for the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.deployment import make

from .make import PASSPHRASE, REPO, project_file, umask


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation whose sites may send what `jobs/fedmsa` shares; made under a umask that takes nobody's rights."""
    folder = tmp_path_factory.mktemp("federation")
    with umask(0):
        make(project_file(folder / "project.yml", jobs=[str(REPO / "jobs" / "fedmsa")]), folder / "fed", PASSPHRASE)
    return folder / "fed"
