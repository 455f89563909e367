"""Kits whose private key never leaves the site."""

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
from fedfms.flare.kit import changed_files, load_certificate
from fedfms.provisioning.deployment import Deployment
from fedfms.provisioning.distributed import MAX_BYTES, approve, key_fingerprint, package, request, root_fingerprint
from fedfms.provisioning.encryption import KIT_PLACEHOLDER

from .make import PASSPHRASE, REPO, umask

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NVFLARE records requests and approvals below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_sites_key_never_leaves_it_and_its_kit_is_complete(federation: Path, tmp_path: Path, home: Path) -> None:
    lead = Deployment(Path(shutil.copytree(federation, tmp_path / "fed")))
    with umask(0):
        sent, expected = request("site-9", "org_n", "tried", tmp_path / "mine")
        signed, root = approve(lead, sent, expected, PASSPHRASE)
        package(signed, tmp_path / "mine", root, tmp_path / "kit", [REPO / "jobs" / "fedmsa"], 16)
    key = load_pem_private_key((tmp_path / "kit" / "startup" / "client.key").read_bytes(), None)
    own = load_certificate(tmp_path / "kit")
    assert own.public_key() == key.public_key()  # type: ignore[union-attr]
    own.verify_directly_issued_by(x509.load_pem_x509_certificate((federation / "rootCA.pem").read_bytes()))
    assert (tmp_path / "kit" / "startup" / "rootCA.pem").read_bytes() == (federation / "rootCA.pem").read_bytes()
    assert 358 <= (own.not_valid_after_utc - own.not_valid_before_utc).days <= 361
    assert changed_files(tmp_path / "kit") == ([], [])
    assert (tmp_path / "kit" / "local" / "privacy.json").is_file()
    assert not [
        path for path in (tmp_path / "kit" / "local").iterdir() if KIT_PLACEHOLDER.encode() in path.read_bytes()
    ]
    resources = json.loads((tmp_path / "kit" / "local" / "resources.json").read_text())
    (expiry,) = [one for one in resources["components"] if one["id"] == "expiry"]
    assert (tmp_path / "kit" / expiry["args"]["file"]).read_bytes() == own.public_bytes(Encoding.PEM)
    assert lead.current("site-9").serial == format(own.serial_number, "x")

    secret = (tmp_path / "kit" / "startup" / "client.key").read_bytes().splitlines()[5]
    holders = {path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()}
    assert {path.relative_to(tmp_path).parts[0] for path in holders} == {"kit", "mine"}
    made = [path for name in ("kit", "mine", "fed") for path in (tmp_path / name).rglob("*")]
    exposed = [path.name for path in made if path.stat().st_mode & 0o077]
    assert exposed == []
    assert not [path for path in (tmp_path / "fed").rglob("*") if path.suffix == ".key"]

    again, expected = request("site-9", "org_n", "tried", tmp_path / "newer")
    approve(lead, again, expected, PASSPHRASE)
    assert [one.state for one in lead.issued if one.name == "site-9"] == ["renewed", "current"]


def test_files_replaced_in_transit_are_rejected(federation: Path, tmp_path: Path) -> None:
    lead = Deployment(Path(shutil.copytree(federation, tmp_path / "fed")))
    sent, expected = request("site-9", "org_n", "tried", tmp_path / "mine")
    other, _ = request("site-9", "org_n", "tried", tmp_path / "other")
    with pytest.raises(ProvisioningError, match="another fingerprint than the site gave"):
        approve(lead, other, expected, PASSPHRASE)
    signed, root = approve(lead, sent, expected, PASSPHRASE)
    with pytest.raises(ProvisioningError, match="another fingerprint than the lead gave"):
        package(signed, tmp_path / "mine", key_fingerprint(sent), tmp_path / "kit", [], 16)
    with pytest.raises(ProvisioningError, match="nvflare package"):
        package(signed, tmp_path / "other", root, tmp_path / "kit", [], 16)
    assert not (tmp_path / "kit").exists()
    assert root == root_fingerprint((federation / "rootCA.pem").read_bytes())


def test_a_request_to_another_federation_is_rejected(federation: Path, tmp_path: Path) -> None:
    sent, expected = request("site-9", "org_n", "another", tmp_path / "mine")
    with pytest.raises(ProvisioningError, match="nvflare cert"):
        approve(Deployment(federation), sent, expected, PASSPHRASE)


def _forged(path: Path, name: str, org: str, kind: str) -> Path:
    """A request made without NVFLARE's commands, as an attacker can make it."""
    parts = {NameOID.COMMON_NAME: name, NameOID.ORGANIZATION_NAME: org, NameOID.UNSTRUCTURED_NAME: kind}
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts.items()])
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.csr", csr.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("name", "org", "kind", "file", "error"),
    [
        ("site-9", "org_n", "project_admin", "site-9", "not a site's"),
        ("site-9", "org_n", "server", "site-9", "not a site's"),
        ("site-9", "org_n", "", "site-9", "not a site's"),
        ("site-1", "org_1", "client", "site-9", "different names"),
        ("site-1", "org_n", "client", "site-1", "belongs to another participant"),
        ("localhost", "lead", "client", "localhost", "belongs to another participant"),
        ("admin@lead.example", "lead", "client", "admin@lead.example", "belongs to another participant"),
        ("../site", "org_n", "client", "site", "a name must consist of"),
    ],
)
def test_a_site_gets_only_a_sites_certificate_under_its_own_name(
    name: str, org: str, kind: str, file: str, error: str, federation: Path, tmp_path: Path
) -> None:
    """The fingerprint is of the key: it matches, and does not identify who made the request."""
    sent = _forged(tmp_path / f"{file}.request.zip", name, org, kind)
    with pytest.raises(ProvisioningError, match=error):
        approve(Deployment(federation), sent, key_fingerprint(sent), PASSPHRASE)


def test_a_file_that_is_not_a_request_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    for content in (b"", b"PK", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(ProvisioningError, match="neither a request"):
            key_fingerprint(path)
    for form in (zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", form) as file:
            file.writestr("a.csr", bytes(MAX_BYTES + 1 if form == zipfile.ZIP_DEFLATED else 1))
        with pytest.raises(ProvisioningError, match="neither a request"):
            key_fingerprint(path)
