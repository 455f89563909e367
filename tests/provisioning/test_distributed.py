"""Kits whose private key never left the site."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedfms.errors import ProvisioningError
from provisioning.deployment import Deployment
from provisioning.distributed import approve, key_code, package, request, root_code
from provisioning.kit import certificate, changes

from .make import PASSPHRASE, REPO, umask

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NVFLARE notes requests and approvals below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_sites_key_never_leaves_it_and_the_kit_is_as_the_others(federation: Path, tmp_path: Path, home: Path) -> None:
    lead = Deployment(Path(shutil.copytree(federation, tmp_path / "fed")))
    with umask(0):
        sent, told = request("site-9", "org_n", "tried", tmp_path / "mine")
        signed, root = approve(lead, sent, told, PASSPHRASE)
        package(signed, tmp_path / "mine", root, tmp_path / "kit", [REPO / "jobs" / "fedmsa"], 16)
    key = load_pem_private_key((tmp_path / "kit" / "startup" / "client.key").read_bytes(), None)
    own = certificate(tmp_path / "kit")
    assert own.public_key() == key.public_key()  # type: ignore[union-attr]
    own.verify_directly_issued_by(x509.load_pem_x509_certificate((federation / "rootCA.pem").read_bytes()))
    assert (tmp_path / "kit" / "startup" / "rootCA.pem").read_bytes() == (federation / "rootCA.pem").read_bytes()
    assert 358 <= (own.not_valid_after_utc - own.not_valid_before_utc).days <= 361
    assert changes(tmp_path / "kit") == ([], [])
    assert (tmp_path / "kit" / "local" / "privacy.json").is_file()
    assert lead.current("site-9").serial == format(own.serial_number, "x")

    secret = (tmp_path / "kit" / "startup" / "client.key").read_bytes().splitlines()[5]
    holders = {path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()}
    assert {path.relative_to(tmp_path).parts[0] for path in holders} == {"kit", "mine"}
    made = [path for name in ("kit", "mine", "fed") for path in (tmp_path / name).rglob("*")]
    open_to_others = [path.name for path in made if path.stat().st_mode & 0o077]
    assert open_to_others == []
    assert not [path for path in (tmp_path / "fed").rglob("*") if path.suffix == ".key"]

    again, code = request("site-9", "org_n", "tried", tmp_path / "newer")
    approve(lead, again, code, PASSPHRASE)
    assert [one.state for one in lead.issued if one.name == "site-9"] == ["renewed", "current"]


def test_what_was_exchanged_on_its_way_is_refused(federation: Path, tmp_path: Path) -> None:
    lead = Deployment(Path(shutil.copytree(federation, tmp_path / "fed")))
    sent, told = request("site-9", "org_n", "tried", tmp_path / "mine")
    other, _ = request("site-9", "org_n", "tried", tmp_path / "other")
    with pytest.raises(ProvisioningError, match="another code than the site told"):
        approve(lead, other, told, PASSPHRASE)
    signed, root = approve(lead, sent, told, PASSPHRASE)
    with pytest.raises(ProvisioningError, match="another code than the lead told"):
        package(signed, tmp_path / "mine", key_code(sent), tmp_path / "kit", [], 16)
    with pytest.raises(ProvisioningError, match="nvflare package"):
        package(signed, tmp_path / "other", root, tmp_path / "kit", [], 16)
    assert not (tmp_path / "kit").exists()
    assert root == root_code((federation / "rootCA.pem").read_bytes())


def test_a_request_to_another_federation_is_refused(federation: Path, tmp_path: Path) -> None:
    sent, told = request("site-9", "org_n", "another", tmp_path / "mine")
    with pytest.raises(ProvisioningError, match="nvflare cert"):
        approve(Deployment(federation), sent, told, PASSPHRASE)


def test_what_is_no_request_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ProvisioningError, match="neither a request"):
        key_code(tmp_path / "a.zip")
