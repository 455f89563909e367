"""Kits whose private key never left the site."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from fedfms.errors import ProvisioningError
from provisioning.deployment import Deployment
from provisioning.distributed import MAX_BYTES, approve, key_code, package, request, root_code
from provisioning.kit import certificate, changes
from provisioning.sealed import PLACE

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
    assert not [path for path in (tmp_path / "kit" / "local").iterdir() if PLACE.encode() in path.read_bytes()]
    resources = json.loads((tmp_path / "kit" / "local" / "resources.json").read_text())
    (expiry,) = [one for one in resources["components"] if one["id"] == "expiry"]
    assert (tmp_path / "kit" / expiry["args"]["file"]).read_bytes() == own.public_bytes(Encoding.PEM)
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


def _forged(path: Path, name: str, org: str, kind: str) -> Path:
    """A request with a key of its own, as somebody who is no site of NVFLARE's commands can make it."""
    parts = {NameOID.COMMON_NAME: name, NameOID.ORGANIZATION_NAME: org, NameOID.UNSTRUCTURED_NAME: kind}
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts.items()])
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.csr", csr.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("name", "org", "kind", "file", "told"),
    [
        ("site-9", "org_n", "project_admin", "site-9", "not a site's"),
        ("site-9", "org_n", "server", "site-9", "not a site's"),
        ("site-9", "org_n", "", "site-9", "not a site's"),
        ("site-1", "org_1", "client", "site-9", "another name than its file's"),
        ("site-1", "org_n", "client", "site-1", "somebody else's"),
        ("localhost", "lead", "client", "localhost", "somebody else's"),
        ("admin@lead.example", "lead", "client", "admin@lead.example", "somebody else's"),
        ("../site", "org_n", "client", "site", "a name must be"),
    ],
)
def test_a_site_gets_no_certificate_but_a_sites_under_its_own_name(
    name: str, org: str, kind: str, file: str, told: str, federation: Path, tmp_path: Path
) -> None:
    """The code that is told by telephone is of the key: it is right, and says nothing of who asks."""
    sent = _forged(tmp_path / f"{file}.request.zip", name, org, kind)
    with pytest.raises(ProvisioningError, match=told):
        approve(Deployment(federation), sent, key_code(sent), PASSPHRASE)


def test_what_is_no_request_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    for content in (b"", b"PK", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(ProvisioningError, match="neither a request"):
            key_code(path)
    for form in (zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", form) as file:
            file.writestr("a.csr", bytes(MAX_BYTES + 1 if form == zipfile.ZIP_DEFLATED else 1))
        with pytest.raises(ProvisioningError, match="neither a request"):
            key_code(path)
