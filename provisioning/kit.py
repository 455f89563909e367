"""A kit as it travels: a sealed archive, with a list of its files whose code two people compare by telephone."""

from __future__ import annotations

import hashlib
import shutil
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from provisioning.policy import BLOCKED
from provisioning.sealed import PLACE, SealError, pack, restrict, seal, unpack, unseal

LIST = "fedfms_kit.txt"  # as `sha256sum -c` reads it
SUFFIX = ".kit"
_DIGITS = 24  # of the code: 96 bits, which nobody finds a second list for


def seal_kit(folder: Path, target: Path, passphrase: str) -> str:
    """Write the kit in `folder` as a sealed archive; returns the code of its list."""
    told = finish(folder)
    write_atomic(target, seal(pack(folder), passphrase), mode=0o600)
    return told


def finish(folder: Path) -> str:
    """Write the list of a kit's files, and take everybody else's rights; returns the list's code."""
    write_atomic(folder / LIST, _listed(folder), mode=0o600)
    restrict(folder)
    return code(folder)


def open_kit(sealed: Path, folder: Path, passphrase: str) -> str:
    """Open a sealed kit into a new folder; returns the code, to compare with the one that the lead reads out.

    Raises:
        ProvisioningError: it cannot be read, the passphrase is wrong, a bit was changed, the folder is there, or the
            files are not those of the kit's list: its code would vouch for others.
    """
    try:
        unpack(unseal(sealed.read_bytes(), passphrase), folder)
    except OSError as error:
        raise ProvisioningError(f"the kit cannot be opened ({error.strerror})", where=sealed.name) from None
    except SealError as error:
        raise ProvisioningError(str(error), where=sealed.name) from None
    if not (folder / LIST).is_file() or _listed(folder, str(folder.resolve())).encode() != _read_list(folder):
        shutil.rmtree(folder)
        raise ProvisioningError("the files are not those of the kit's list", where=sealed.name, do="tell the lead")
    return code(folder)


def _listed(folder: Path, opened_into: str = "") -> str:
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
    return spoken(_read_list(folder))


def spoken(content: bytes) -> str:
    """A digest for the telephone: 24 hexadecimal digits in six groups."""
    digits = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return "-".join(digits[i : i + 4] for i in range(0, _DIGITS, 4))


def _read_list(folder: Path) -> bytes:
    try:
        return (folder / LIST).read_bytes()
    except OSError:
        raise ProvisioningError(f"there is no {LIST}", where=folder.name, do="name a kit's folder") from None


def changes(folder: Path) -> tuple[list[str], list[str]]:
    """What differs from the kit as it was sealed: in `startup/`, which nobody may change, and in `local/`, which is the
    site's own.

    Raises:
        ProvisioningError: the kit has no list.
    """
    lines = (line.split("  ", 1) for line in _read_list(folder).decode().splitlines())
    was = {name: digest for digest, name in lines}
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


def put_blocked(source: Path, server: Path) -> None:
    """Put the list of blocked serials into the server's kit, where it is read anew each time.

    Raises:
        ProvisioningError: it is no server's kit of ours.
    """
    target = server / "local" / BLOCKED
    if not target.is_file():
        raise ProvisioningError("this is no server's kit of ours", where=server.name, do="name its folder")
    write_atomic(target, source.read_bytes(), mode=0o600)
