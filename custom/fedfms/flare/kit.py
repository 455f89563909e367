"""An opened startup kit: its file list and fingerprint, files changed since it was encrypted, and its certificate.

`provisioning`, which makes and encrypts kits, need not be at a site. Functions raise `ProvisioningError` if a file of
the kit is missing or damaged.
"""

import hashlib
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedfms.errors import ProvisioningError

LIST_FILE = "fedfms_kit.txt"  # in the format of `sha256sum -c`
KIT_PLACEHOLDER = "@KIT@"  # in local/*.json of an encrypted kit: stands for the folder that the kit is opened into
RENEWAL_DAYS = 30  # renew a certificate that expires in fewer days
_DIGITS = 24  # of a fingerprint: 96 bits, out of reach of a second-preimage attack


def file_list(folder: Path, opened_into: str = "") -> str:
    """SHA-256 and name of each file of a kit, one per line.

    Args:
        opened_into: the folder that replaced `KIT_PLACEHOLDER`, to undo that; empty in a kit that was never encrypted.
    """
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{_sha256(folder / path, opened_into)}  {path}\n" for path in paths if path != LIST_FILE)


def _sha256(path: Path, opened_into: str) -> str:
    content = path.read_bytes()
    if opened_into and path.suffix == ".json":
        content = content.replace(opened_into.encode(), KIT_PLACEHOLDER.encode())
    return hashlib.sha256(content).hexdigest()


def fingerprint(content: bytes) -> str:
    """24 hexadecimal digits of the SHA-256 in six groups, to compare by telephone."""
    digits = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return "-".join(digits[i : i + 4] for i in range(0, _DIGITS, 4))


def kit_fingerprint(folder: Path) -> str:
    """The fingerprint of a kit's stored file list."""
    return fingerprint(read_file_list(folder))


def read_file_list(folder: Path) -> bytes:
    """The kit's file list as it was encrypted."""
    try:
        return (folder / LIST_FILE).read_bytes()
    except OSError:
        raise ProvisioningError(f"there is no {LIST_FILE}", where=folder.name, do="name a kit's folder") from None


def changed_files(folder: Path) -> tuple[list[str], list[str]]:
    """Files added, changed or deleted since the kit was encrypted: in `startup/`, which nobody may change, and in
    `local/`, which belongs to the site.
    """
    try:
        lines = (line.split("  ", 1) for line in read_file_list(folder).decode().splitlines())
        expected = {name: digest for digest, name in lines}
    except ValueError:
        do = "open the encrypted kit again"
        raise ProvisioningError("the kit's file list is damaged", where=folder.name, do=do) from None
    place = str(folder.resolve())
    found = {
        path.relative_to(folder).as_posix(): _sha256(path, place)
        for part in ("startup", "local")
        for path in (folder / part).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    startup, local = ([name for name in changed if name.startswith(f"{part}/")] for part in ("startup", "local"))
    return startup, local


def load_certificate(kit: Path) -> x509.Certificate:
    """The certificate of the kit's owner."""
    paths = (kit / "startup" / name for name in ("client.crt", "server.crt"))
    try:
        return x509.load_pem_x509_certificate(next(path for path in paths if path.is_file()).read_bytes())
    except (StopIteration, ValueError):
        do = "name a kit's folder"
        raise ProvisioningError("there is no certificate in startup/", where=kit.name, do=do) from None


def common_name(certificate: x509.Certificate) -> str:
    """The name of a certificate's owner."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def days_left(expires: datetime, now: datetime) -> int:
    """Whole days; negative after expiry."""
    return (expires - now).days
