"""Make a kit whose private key never leaves the site: the site requests a certificate, and the lead signs it.

    site    fedfms kits request ...    -> NAME.request.zip, and the fingerprint of its public key
    lead    fedfms kits approve ...    -> NAME.signed.zip, and the fingerprint of the root certificate
    site    fedfms kits package ...    -> the kit

The two sides exchange the fingerprints by telephone. A mismatch reveals a file replaced in transit.
"""

import json
import zipfile
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from nvflare.tool.cert.cert_constants import PROVISION_VERSION_FIELD, ROOTCA_FINGERPRINT_FIELD
from nvflare.tool.cert.fingerprint import cert_fingerprint_sha256

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.kit import fingerprint
from fedfms.flare.nvflare_cli import run_nvflare
from fedfms.provisioning.certificates import read_root
from fedfms.provisioning.deployment import Deployment, temporary_folder
from fedfms.provisioning.encryption import read_zip, restrict
from fedfms.provisioning.kit import write_file_list
from fedfms.provisioning.policy import shared_sizes, write_policy
from fedfms.provisioning.project import check_participant

VALID_DAYS = 360  # as NVFLARE's for kits that the lead makes
MAX_FILES, MAX_BYTES = 20, 1 << 20  # of a request or answer, which has 4 kB
_SCHEME, _SECURITY = "http", "mtls"  # NVFLARE's defaults for a provisioned project


def request(name: str, org: str, project: str, folder: Path) -> tuple[Path, str]:
    """At the site: make a key and a request in a new folder; returns the file to send and the key's fingerprint."""
    participant = {"name": name, "type": "client", "org": org}
    check_participant(participant, "request")
    if folder.exists():
        raise ProvisioningError("the folder exists", where=folder.name, do="name another one")
    folder.mkdir(parents=True, mode=0o700)
    folder = folder.resolve()
    definition = folder / "participant.yml"
    write_atomic(definition, yaml.safe_dump({"name": project, "participants": [participant]}), mode=0o600)
    run_nvflare("cert", "request", "-p", str(definition), "--out", str(folder / "request"), folder=folder)
    restrict(folder)
    archive = folder / "request" / f"{name}.request.zip"
    return archive, key_fingerprint(archive)


def key_fingerprint(archive: Path) -> str:
    """The fingerprint of the public key in a request."""
    key = _signing_request(archive).public_key()
    return fingerprint(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _signing_request(archive: Path) -> x509.CertificateSigningRequest:
    contents = _members(archive, ".csr")
    try:
        (content,) = contents
        return x509.load_pem_x509_csr(content)
    except ValueError:
        raise ProvisioningError("this is not a request", where=archive.name) from None


def requested_identity(archive: Path) -> tuple[str, str]:
    """Name and organisation in a site's request, which the key's fingerprint does not cover.

    Raises:
        ProvisioningError: it is not a request, requests a server's or a person's certificate, or another name than
            the file's.
    """
    subject = _signing_request(archive).subject
    name, org, kind = (
        "".join(str(found.value) for found in subject.get_attributes_for_oid(oid)[:1])
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.UNSTRUCTURED_NAME)
    )
    if kind != "client":
        raise ProvisioningError("the request is not a site's", where=archive.name, do="for a person: `add --role`")
    check_participant({"name": name, "type": kind, "org": org}, "request")
    if archive.name != f"{name}.request.zip":
        raise ProvisioningError("the request and its file have different names", where=archive.name, do="ask the site")
    return name, org


def approve(federation: Deployment, archive: Path, expected: str, passphrase: str) -> tuple[Path, str]:
    """At the lead: sign a request; returns the file to send back and the root certificate's fingerprint.

    A name that has a certificate gets a new one: this is how a site renews.

    Args:
        expected: the key's fingerprint, from the site by telephone.

    Raises:
        ProvisioningError: the fingerprint differs, the request is for more than a site's certificate or for the name of
            another participant, NVFLARE rejects the request, or the passphrase is wrong.
    """
    if key_fingerprint(archive) != expected:
        what = "the request has another fingerprint than the site gave"
        raise ProvisioningError(what, where=archive.name, do="ask the site")
    name, org = requested_identity(archive)
    with federation.root_key(passphrase) as work:
        other = federation.project.find(name)
        if other is not None and (other.type, other.org) != ("client", org):
            do = "the site requests a certificate under its own name"
            raise ProvisioningError("the name belongs to another participant", where=name, do=do)
        profile = _write_authority(federation, work)
        signed = work / f"{name}.signed.zip"
        run_nvflare(
            "cert", "approve", str(archive.resolve()), "-c", str(work), "--profile", str(profile),
            "--out", str(signed), "--valid-days", str(VALID_DAYS), folder=work,
        )  # fmt: skip
        (content,) = _members(signed, ".crt")
        target = federation.folder / "kits" / signed.name
        write_atomic(target, signed.read_bytes(), mode=0o600)
        federation.record(x509.load_pem_x509_certificate(content), "client")
    return target, root_fingerprint((federation.folder / "rootCA.pem").read_bytes())


def _write_authority(federation: Deployment, work: Path) -> Path:
    """Write the root's files in the layout of NVFLARE's `cert approve`; returns the project's profile."""
    root = read_root(work / "cert.json")
    certificate = x509.load_pem_x509_certificate(root.root_cert.encode())
    server = federation.project.server
    about = {
        "project": federation.project.name, "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        PROVISION_VERSION_FIELD: "00", ROOTCA_FINGERPRINT_FIELD: cert_fingerprint_sha256(certificate),
    }  # fmt: skip
    address = {
        "host": server.default_host or server.name, "fed_learn_port": server.fed_learn_port,
        "admin_port": server.admin_port or server.fed_learn_port,
    }  # fmt: skip
    profile = {
        "name": federation.project.name, "scheme": _SCHEME, "connection_security": _SECURITY, "server": address
    }  # fmt: skip
    for name, content in (
        ("rootCA.pem", root.root_cert), ("rootCA.key", root.root_pri_key), ("ca.json", json.dumps(about)),
        ("profile.yml", yaml.safe_dump(profile)),
    ):  # fmt: skip
        write_atomic(work / name, content, mode=0o600)
    return work / "profile.yml"


def root_fingerprint(pem: bytes) -> str:
    """The fingerprint of a root certificate."""
    try:
        return fingerprint(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    except ValueError:
        raise ProvisioningError("this is not a root certificate") from None


def package(signed: Path, requested: Path, expected: str, kit: Path, jobs: Iterable[Path], max_job_mb: int) -> str:
    """At the site: make the kit from the site's key and the lead's answer; returns the kit's fingerprint.

    Args:
        requested: the folder of `request`.
        expected: the root certificate's fingerprint, from the lead by telephone.
        jobs: the tensors that they share may leave the site.

    Raises:
        ProvisioningError: the fingerprint differs, the answer is to another request, or the kit's folder exists.
    """
    pem = _members(signed, "rootCA.pem")[0]
    if root_fingerprint(pem) != expected:
        what = "the root certificate has another fingerprint than the lead gave"
        raise ProvisioningError(what, where=signed.name, do="ask the lead")
    if kit.exists():
        raise ProvisioningError("the folder exists", where=kit.name, do="name another one")
    kit.parent.mkdir(parents=True, exist_ok=True)
    sha256 = x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    with temporary_folder(kit.parent) as work:
        made = run_nvflare(
            "package", str(signed.resolve()), "--request-dir", str((requested / "request").resolve()),
            "--fingerprint", sha256, "-w", str(work / "ws"), folder=work,
        )  # fmt: skip
        fresh = Path(made.output_dir)
        write_policy(fresh, "client", shared_sizes(jobs), max_job_mb)
        found = write_file_list(fresh)
        restrict(requested)  # NVFLARE writes the certificate and the root there too
        fresh.rename(kit)
    return found


def _members(archive: Path, suffix: str) -> list[bytes]:
    """The files in a small zip file whose names end in `suffix`, at least one."""
    try:
        with archive.open("rb") as file:
            found = [content for name, content in read_zip(file, MAX_FILES, MAX_BYTES) if name.endswith(suffix)]
    except (OSError, zipfile.BadZipFile):
        found = []
    if not found:
        raise ProvisioningError("this is neither a request nor an answer to one", where=archive.name)
    return found
