"""Files under a passphrase, and kits in them: scrypt makes the key, AES-256-GCM encrypts and tells of any change.

It imports nothing of this package and only `cryptography` beside Python itself, so that a site which has not installed
the package yet opens its kit with this one file, after reading it::

    python sealed.py KIT FOLDER        # asks for the passphrase
"""

from __future__ import annotations

import getpass
import io
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MAGIC = b"FEDFMS SEALED 1\n"
PLACE = "@KIT@"  # in a kit's local/*.json: the folder that the kit was opened into
MAX_FILES, MAX_BYTES = 1000, 64 << 20  # of an opened kit, which has some 20 files of 100 kB together
_SALT, _NONCE = 16, 12


class SealError(ValueError):
    """What is sealed does not open, or may not be written where it should be."""


def seal(content: bytes, passphrase: str) -> bytes:
    """Encrypt; the same content is sealed differently each time."""
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    return MAGIC + salt + nonce + AESGCM(_key(passphrase, salt)).encrypt(nonce, content, MAGIC)


def unseal(sealed: bytes, passphrase: str) -> bytes:
    """The content.

    Raises:
        SealError: it is no such file, the passphrase is another, or a bit was changed.
    """
    start = len(MAGIC) + _SALT + _NONCE
    if not sealed.startswith(MAGIC) or len(sealed) < start:
        raise SealError("this is not a sealed file")
    salt, nonce = sealed[len(MAGIC) : len(MAGIC) + _SALT], sealed[len(MAGIC) + _SALT : start]
    try:
        return AESGCM(_key(passphrase, salt)).decrypt(nonce, sealed[start:], MAGIC)
    except InvalidTag:
        raise SealError("the passphrase is wrong, or the file was changed") from None


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**16, r=8, p=1).derive(passphrase.encode("utf-8"))


def pack(folder: Path) -> bytes:
    """The folder's files as a zip: the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Write the files into a new folder that only its owner reads: 0700, and 0600 (scripts 0700), whatever the umask.

    Raises:
        SealError: the folder is there already, or the archive is none, too large, or names a place outside.
    """
    if folder.exists():
        raise SealError("the folder is there already; name another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))  # 0700
    try:
        for name, content in _members(archive):
            if name.endswith(".json") and name.startswith("local/"):
                content = content.replace(PLACE.encode(), str(folder.resolve()).encode())
            _write(fresh / name, content)
        restrict(fresh)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # there only if something went wrong


def _members(archive: bytes) -> list[tuple[str, bytes]]:
    try:
        found = read_zip(io.BytesIO(archive), MAX_FILES, MAX_BYTES)
    except zipfile.BadZipFile as error:
        raise SealError(f"this is not a kit: {error}") from None
    for name, _ in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise SealError("the kit names a place outside its folder")
    return found


def read_zip(source: BinaryIO, most: int, nbytes: int) -> list[tuple[str, bytes]]:
    """Names and contents of the files in a zip that somebody else made: at most so many, of so many bytes together.

    Raises:
        BadZipFile: it is none, larger than that whatever its list of sizes says, encrypted, or of a rare form.
    """
    found = []
    try:
        with zipfile.ZipFile(source) as file:
            members = [info for info in file.infolist() if not info.is_dir()]
            if len(members) > most or sum(info.file_size for info in members) > nbytes:
                raise zipfile.BadZipFile("it is larger than it can be")
            for info in members:
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                    raise zipfile.BadZipFile("a file in it is not as ours are")
                with file.open(info) as member:
                    # Not `file.read`, which first unpacks it all, whatever size is said.
                    found.append((info.filename, member.read(info.file_size + 1)))
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error):
        raise zipfile.BadZipFile("it cannot be read") from None
    return found


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def restrict(folder: Path) -> None:
    """Take everybody else's rights: folders and scripts 0700, other files 0600. Links are not followed."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)


def main(arguments: list[str]) -> int:
    """Open a kit into a folder, for those who have this file alone."""
    if len(arguments) != 2:
        sys.stderr.write("python sealed.py KIT FOLDER\n")
        return 2
    os.umask(0o077)
    try:
        unpack(unseal(Path(arguments[0]).read_bytes(), getpass.getpass("Passphrase: ")), Path(arguments[1]))
    except (SealError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
