"""The other way to a kit: a site makes its own private key, which never leaves it, and the lead signs the rest.

    site    python -m provisioning request ...    -> NAME.request.zip, and a code of its key
    lead    python -m provisioning approve ...    -> NAME.signed.zip, and a code of the root
    site    python -m provisioning package ...    -> the kit

Each side tells the other its code by telephone; a request or answer whose code differs was exchanged on its way.
"""

from __future__ import annotations

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
from fedfms.flare.nvflare_cli import nvflare
from provisioning.deployment import Deployment, work_folder
from provisioning.kit import finish, spoken
from provisioning.policy import sizes_of, write_policy
from provisioning.project import check_participant
from provisioning.sealed import read_zip, restrict

DAYS = 360  # as NVFLARE's of kits that the lead makes
MAX_FILES, MAX_BYTES = 20, 1 << 20  # of a request, an answer and what is in them, which are 4 kB
_SCHEME, _SECURITY = "http", "mtls"  # NVFLARE's defaults for a provisioned project


def request(name: str, org: str, project: str, folder: Path) -> tuple[Path, str]:
    """At the site: make a key and a request in a new folder; returns what to send, and the code of the key.

    Raises:
        ProvisioningError: the folder is there, or NVFLARE refuses the names.
    """
    one = {"name": name, "type": "client", "org": org}
    check_participant(one)
    if folder.exists():
        raise ProvisioningError("the folder is there already", where=folder.name, do="name another one")
    folder.mkdir(parents=True, mode=0o700)
    folder = folder.resolve()
    definition = folder / "participant.yml"
    write_atomic(definition, yaml.safe_dump({"name": project, "participants": [one]}), mode=0o600)
    nvflare("cert", "request", "-p", str(definition), "--out", str(folder / "request"), folder=folder)
    restrict(folder)
    sent = folder / "request" / f"{name}.request.zip"
    return sent, key_code(sent)


def key_code(sent: Path) -> str:
    """The code of the key that a request asks a certificate for.

    Raises:
        ProvisioningError: it is no request.
    """
    key = _asked(sent).public_key()
    return spoken(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _asked(sent: Path) -> x509.CertificateSigningRequest:
    contents = _members(sent, ".csr")
    try:
        (content,) = contents
        return x509.load_pem_x509_csr(content)
    except ValueError:
        raise ProvisioningError("this is not a request", where=sent.name) from None


def who(sent: Path) -> tuple[str, str]:
    """Name and organisation that a request of a site asks a certificate for: the code says nothing of them.

    Raises:
        ProvisioningError: it is no request; it asks to be a server or a person; the file has the name of another.
    """
    subject = _asked(sent).subject
    name, org, kind = (
        "".join(str(found.value) for found in subject.get_attributes_for_oid(oid)[:1])
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.UNSTRUCTURED_NAME)
    )
    if kind != "client":
        raise ProvisioningError("the request is not a site's", where=sent.name, do="a person's kit: `add --role`")
    check_participant({"name": name, "type": kind, "org": org})
    if sent.name != f"{name}.request.zip":
        raise ProvisioningError("the request is for another name than its file's", where=sent.name, do="ask the site")
    return name, org


def approve(federation: Deployment, sent: Path, code: str, passphrase: str) -> tuple[Path, str]:
    """At the lead: sign a request whose code the site has told; returns what to send back, and the code of the root.

    A name that has a certificate gets a newer one: so a site renews.

    Raises:
        ProvisioningError: the code is another, it asks for more than a site's certificate or for a name that is not
            the site's own, NVFLARE refuses the request, the passphrase is wrong.
    """
    if key_code(sent) != code:
        raise ProvisioningError("the request has another code than the site told", where=sent.name, do="ask the site")
    name, org = who(sent)
    with federation.root(passphrase) as work:
        for one in federation.project.participants:
            if one["name"] == name and (one["type"], one["org"]) != ("client", org):
                raise ProvisioningError("the name is somebody else's", where=name, do="let the site ask under its own")
        profile = _authority(federation, work)
        signed = work / f"{name}.signed.zip"
        nvflare(
            "cert", "approve", str(sent.resolve()), "-c", str(work), "--profile", str(profile),
            "--out", str(signed), "--valid-days", str(DAYS), folder=work,
        )  # fmt: skip
        (content,) = _members(signed, ".crt")
        target = federation.folder / "kits" / signed.name
        write_atomic(target, signed.read_bytes(), mode=0o600)
        federation.record(x509.load_pem_x509_certificate(content), "client")
    return target, root_code((federation.folder / "rootCA.pem").read_bytes())


def _authority(federation: Deployment, work: Path) -> Path:
    """Lay out the root as NVFLARE's `cert approve` wants it; returns the project's profile."""
    root = json.loads((work / "cert.json").read_text(encoding="utf-8"))
    certificate = x509.load_pem_x509_certificate(root["root_cert"].encode())
    server = federation.project.server
    about = {
        "project": federation.project.name, "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        PROVISION_VERSION_FIELD: "00", ROOTCA_FINGERPRINT_FIELD: cert_fingerprint_sha256(certificate),
    }  # fmt: skip
    where = {
        "host": server.get("default_host") or server["name"], "fed_learn_port": server["fed_learn_port"],
        "admin_port": server.get("admin_port") or server["fed_learn_port"],
    }  # fmt: skip
    profile = {
        "name": federation.project.name, "scheme": _SCHEME, "connection_security": _SECURITY, "server": where
    }  # fmt: skip
    for name, content in (
        ("rootCA.pem", root["root_cert"]), ("rootCA.key", root["root_pri_key"]), ("ca.json", json.dumps(about)),
        ("profile.yml", yaml.safe_dump(profile)),
    ):  # fmt: skip
        write_atomic(work / name, content, mode=0o600)
    return work / "profile.yml"


def root_code(pem: bytes) -> str:
    """The code of a root's certificate.

    Raises:
        ProvisioningError: it is none.
    """
    try:
        return spoken(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    except ValueError:
        raise ProvisioningError("this is not a root's certificate") from None


def package(signed: Path, asked: Path, code: str, kit: Path, jobs: Iterable[Path], max_job_mb: int) -> str:
    """At the site: the kit, of the site's own key and the lead's answer, with our policy; returns the kit's code.

    Args:
        asked: the folder of `request`.
        code: of the root, as the lead told it.
        jobs: what they share may leave the site.

    Raises:
        ProvisioningError: the code is another, the answer is to another request, the kit's folder is there.
    """
    pem = next(iter(_members(signed, "rootCA.pem")))
    if root_code(pem) != code:
        raise ProvisioningError("the root has another code than the lead told", where=signed.name, do="ask the lead")
    if kit.exists():
        raise ProvisioningError("the folder is there already", where=kit.name, do="name another one")
    kit.parent.mkdir(parents=True, exist_ok=True)
    fingerprint = x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    with work_folder(kit.parent) as work:
        made = nvflare(
            "package", str(signed.resolve()), "--request-dir", str((asked / "request").resolve()),
            "--fingerprint", fingerprint, "-w", str(work / "ws"), folder=work,
        )  # fmt: skip
        fresh = Path(str(made["output_dir"]))
        write_policy(fresh, "client", sizes_of(jobs), max_job_mb)
        told = finish(fresh)
        restrict(asked)  # NVFLARE lays the certificate and the root there as well
        fresh.rename(kit)
    return told


def _members(archive: Path, ending: str) -> list[bytes]:
    """The files in a small zip whose names end so; one at least."""
    try:
        with archive.open("rb") as file:
            found = [content for name, content in read_zip(file, MAX_FILES, MAX_BYTES) if name.endswith(ending)]
    except (OSError, zipfile.BadZipFile):
        found = []
    if not found:
        raise ProvisioningError("this is neither a request nor an answer to one", where=archive.name)
    return found
