"""Test objects for preflights: certificates, a TLS server in a thread, and a site's kit."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedfms.provisioning.kit import write_file_list
from fedfms.provisioning.policy import write_policy

SITE, HOST = "site-1", "localhost"
_PEM = serialization.Encoding.PEM
_ROOT_USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip
_DEFAULT = {
    "format_version": 2, "components": [{"id": "resource_manager", "path": "x"}], "snapshot_persistor": {},
}  # fmt: skip


@dataclass(frozen=True)
class Signed:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    @property
    def key_pem(self) -> bytes:
        plain = serialization.NoEncryption()
        return self.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, plain)


def signed(name: str, by: Signed | None = None, *, begins: float = -1, ends: float = 360) -> Signed:
    """A certificate for `name` (also as host), signed by `by` or by itself; `begins` and `ends` in days from now."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    issuer = by.key if by else key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
        .issuer_name(by.certificate.subject if by else subject).serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins)).not_valid_after(now + timedelta(days=ends, hours=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )  # fmt: skip
    if by is None:
        builder = builder.add_extension(_ROOT_USAGE, critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return Signed(builder.sign(issuer, hashes.SHA256()), key)


def kit(folder: Path, root: Signed, own: Signed, port: int, tensors: dict[str, int], scheme: str = "http") -> Path:
    """A site's opened kit with the policy that `tensors` may leave."""
    for name in ("startup", "local"):
        (folder / name).mkdir(parents=True)
    (folder / "local" / "resources.json.default").write_text(json.dumps(_DEFAULT))
    write_policy(folder, "client", tensors, 16)
    service = {"target": f"{HOST}:{port}", "scheme": scheme}
    client = {"servers": [{"service": service, "identity": HOST}], "client": {"fqsn": SITE}}
    (folder / "startup" / "fed_client.json").write_text(json.dumps(client))
    (folder / "startup" / "sub_start.sh").write_text("#!/bin/sh\n")
    install(folder, root, own)
    return folder


def install(folder: Path, root: Signed, own: Signed) -> None:
    """Write certificates into a kit, and its file list."""
    for name, content in (("rootCA.pem", root.pem), ("client.crt", own.pem), ("client.key", own.key_pem)):
        (folder / "startup" / name).write_bytes(content)
    write_file_list(folder)


@contextmanager
def server(folder: Path, root: Signed, own: Signed, *, plain: bool = False, date: datetime | None = None,
           dated: bool = True) -> Iterator[int]:  # fmt: skip
    """A server that requires certificates of `root` and answers with a date (None: now); yields its port."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("root.pem", root.pem), ("own.pem", own.pem + own.key_pem)):
        (folder / name).write_bytes(content)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "root.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "own.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                with suppress(OSError):  # a client that does not trust this server, or is not trusted
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(5)
                        if plain:
                            connection.sendall(b"220 a mail server\r\n")
                            continue
                        with context.wrap_socket(connection, server_side=True) as secure:
                            secure.recv(4096)
                            text = format_datetime(date or datetime.now(timezone.utc), usegmt=True)
                            line = f"Date: {text}\r\n" if dated else ""
                            secure.sendall(f"HTTP/1.1 404 Not Found\r\n{line}Content-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            stopped.set()
            thread.join()
