"""An opened kit, as its owner holds it: whose it is, whether it is as it was sealed, and the code of its list.

Kits are made and sealed in `provisioning`, which a site need not have; a site has this package and its kit.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedfms.errors import ProvisioningError

LIST = "fedfms_kit.txt"  # as `sha256sum -c` reads it
PLACE = "@KIT@"  # in a sealed kit's local/*.json: the folder that it will be opened into
SOON = 30  # days left, from which on a certificate is to be renewed
_DIGITS = 24  # of a code: 96 bits, which nobody finds a second list for


def listed(folder: Path, opened_into: str = "") -> str:
    """The lines of a kit's list: SHA-256 and name of each file.

    Args:
        opened_into: the folder that `PLACE` became, to be told as `PLACE`; empty in a kit that was never sealed.
    """
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{_sha256(folder / path, opened_into)}  {path}\n" for path in paths if path != LIST)


def _sha256(path: Path, opened_into: str = "") -> str:
    content = path.read_bytes()
    if opened_into and path.suffix == ".json":
        content = content.replace(opened_into.encode(), PLACE.encode())
    return hashlib.sha256(content).hexdigest()


def code(folder: Path) -> str:
    """24 hexadecimal digits in six groups, of the list of the kit's files as they were sealed.

    Raises:
        ProvisioningError: the kit has no list.
    """
    return spoken(read_list(folder))


def spoken(content: bytes) -> str:
    """A digest for the telephone: 24 hexadecimal digits in six groups."""
    digits = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return "-".join(digits[i : i + 4] for i in range(0, _DIGITS, 4))


def read_list(folder: Path) -> bytes:
    """The kit's list as it was sealed.

    Raises:
        ProvisioningError: the kit has none.
    """
    try:
        return (folder / LIST).read_bytes()
    except OSError:
        raise ProvisioningError(f"there is no {LIST}", where=folder.name, do="name a kit's folder") from None


def changes(folder: Path) -> tuple[list[str], list[str]]:
    """What differs from the kit as it was sealed: in `startup/`, which nobody may change, and in `local/`, which is the
    site's own.

    Raises:
        ProvisioningError: the kit has no list, or one that is damaged.
    """
    try:
        lines = (line.split("  ", 1) for line in read_list(folder).decode().splitlines())
        was = {name: digest for digest, name in lines}
    except ValueError:
        do = "open the sealed kit again"
        raise ProvisioningError("the kit's list is damaged", where=folder.name, do=do) from None
    parts: tuple[list[str], list[str]] = ([], [])
    for part, found in zip(("startup", "local"), parts, strict=True):
        now = {
            path.relative_to(folder).as_posix(): _sha256(path, str(folder.resolve()))
            for path in (folder / part).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        }  # fmt: skip
        before = {name: digest for name, digest in was.items() if name.startswith(f"{part}/")}
        found += sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    return parts


def certificate(kit: Path) -> x509.Certificate:
    """The certificate of whom the kit is for.

    Raises:
        ProvisioningError: there is none.
    """
    for name in ("client.crt", "server.crt"):
        path = kit / "startup" / name
        if path.is_file():
            try:
                return x509.load_pem_x509_certificate(path.read_bytes())
            except ValueError:
                break
    raise ProvisioningError("there is no certificate in startup/", where=kit.name, do="name a kit's folder")


def common_name(found: x509.Certificate) -> str:
    """Whom a certificate is for."""
    return str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def days_left(until: datetime, now: datetime) -> int:
    """Whole days; negative once it has expired."""
    return (until - now).days
