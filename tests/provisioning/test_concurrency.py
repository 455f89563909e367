"""Concurrent commands in one federation folder do not undo each other's changes."""

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
from cryptography import x509

from fedfms.errors import ProvisioningError
from fedfms.provisioning.deployment import Deployment
from fedfms.provisioning.project import load_project

from .make import PASSPHRASE

pytestmark = pytest.mark.slow  # NVFLARE takes seconds to make kits


@pytest.fixture
def copy(federation: Path, tmp_path: Path) -> Path:
    """The federation, to change."""
    return Path(shutil.copytree(federation, tmp_path / "fed"))


def _revoke(folder: Path, name: str) -> None:
    """Retry while another command uses the folder."""
    until = time.monotonic() + 60
    while True:
        try:
            Deployment(folder).revoke(name)
        except ProvisioningError as error:
            assert "another command" in str(error) and time.monotonic() < until
            time.sleep(0.002)
        else:
            return


def test_concurrent_revocations_are_all_recorded(copy: Path) -> None:
    names = [one.name for one in Deployment(copy).issued]
    with multiprocessing.get_context("spawn").Pool(len(names)) as pool:
        pool.starmap(_revoke, [(copy, name) for name in names])
    assert [(one.name, one.state) for one in Deployment(copy).issued] == [(name, "revoked") for name in names]
    assert set(json.loads((copy / "revoked.json").read_text())["serials"].values()) == set(names)


def test_a_command_that_writes_fails_while_another_one_runs(copy: Path) -> None:
    other, files = Deployment(copy), [copy / "issued.jsonl", copy / "revoked.json"]
    before = [path.read_bytes() for path in files]
    found = x509.load_pem_x509_certificate((copy / "rootCA.pem").read_bytes())
    with Deployment(copy).locked():
        for write in (lambda: other.revoke("site-1"), lambda: other.record(found, "client")):
            with pytest.raises(ProvisioningError, match="another command"):
                write()
    assert [path.read_bytes() for path in files] == before


def test_two_participants_added_at_once_are_both_in_the_project(copy: Path) -> None:
    one, other = Deployment(copy), Deployment(copy)  # both have read the project file before either has written it
    one.add({"name": "site-4", "type": "client", "org": "d"}, PASSPHRASE)
    other.add({"name": "site-5", "type": "client", "org": "e"}, PASSPHRASE)
    assert {"site-4", "site-5"} <= {found.name for found in load_project(copy / "project.yml").participants}
