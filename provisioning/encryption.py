"""Encrypt files and kits with a passphrase: scrypt derives the key, AES-256-GCM encrypts and authenticates.

This file imports only `cryptography` and Python's standard library. A site that has not installed the package yet can
read this file and open its kit with it alone::

    python encryption.py KIT FOLDER        # asks for the passphrase
"""

import getpass
import io
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MAGIC = b"FEDFMS SEALED 1\n"
KIT_PLACEHOLDER = "@KIT@"  # in local/*.json of an encrypted kit: stands for the folder that the kit is opened into
MAX_FILES, MAX_BYTES = 1000, 64 << 20  # of a kit, which has about 20 files of 100 kB together
_SALT, _NONCE = 16, 12


class EncryptionError(ValueError):
    """A file cannot be decrypted or unpacked."""


def encrypt(content: bytes, passphrase: str) -> bytes:
    """Encrypt with a random salt and nonce."""
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    return MAGIC + salt + nonce + AESGCM(_key(passphrase, salt)).encrypt(nonce, content, MAGIC)


def decrypt(encrypted: bytes, passphrase: str) -> bytes:
    """The inverse of `encrypt`.

    Raises:
        EncryptionError: not such a file, a wrong passphrase, or a changed bit.
    """
    start = len(MAGIC) + _SALT + _NONCE
    if not encrypted.startswith(MAGIC) or len(encrypted) < start:
        raise EncryptionError("this is not an encrypted file")
    salt, nonce = encrypted[len(MAGIC) : len(MAGIC) + _SALT], encrypted[len(MAGIC) + _SALT : start]
    try:
        return AESGCM(_key(passphrase, salt)).decrypt(nonce, encrypted[start:], MAGIC)
    except InvalidTag:
        raise EncryptionError("the passphrase is wrong, or the file was changed") from None


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**16, r=8, p=1).derive(passphrase.encode("utf-8"))


def pack(folder: Path) -> bytes:
    """The folder's files as a zip file; deterministic."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Write the files to a new folder with the permissions of `restrict`, whatever the umask.

    Raises:
        EncryptionError: the folder exists; the archive is not a zip file, too large, or names a path outside it.
    """
    if folder.exists():
        raise EncryptionError("the folder exists; name another one")
    try:
        members = read_zip(io.BytesIO(archive), MAX_FILES, MAX_BYTES)
    except zipfile.BadZipFile as error:
        raise EncryptionError(f"this is not a kit: {error}") from None
    for name, _ in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise EncryptionError("the kit names a path outside its folder")
    with atomic_folder(folder) as fresh:
        for name, content in members:
            if name.endswith(".json") and name.startswith("local/"):
                content = content.replace(KIT_PLACEHOLDER.encode(), str(folder.resolve()).encode())
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            with (fresh / name).open("xb") as file:
                file.write(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, after `restrict`; deleted after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent.resolve(), prefix=f".{folder.name}."))  # 0700 from the start
    try:
        yield fresh
        restrict(fresh)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_zip(source: BinaryIO, max_files: int, max_bytes: int) -> list[tuple[str, bytes]]:
    """Names and contents of the files in an untrusted zip file.

    Raises:
        BadZipFile: not a zip file, larger than allowed (whatever sizes it declares), encrypted, or an unusual format.
    """
    found = []
    try:
        with zipfile.ZipFile(source) as file:
            members = [info for info in file.infolist() if not info.is_dir()]
            if len(members) > max_files or sum(info.file_size for info in members) > max_bytes:
                raise zipfile.BadZipFile("it is too large")
            for info in members:
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                    raise zipfile.BadZipFile("unsupported compression or encryption")
                with file.open(info) as member:
                    # `file.read` would unpack the whole file first, whatever size is declared.
                    found.append((info.filename, member.read(info.file_size + 1)))
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error):
        raise zipfile.BadZipFile("it cannot be read") from None
    return found


def restrict(folder: Path) -> None:
    """Limit access to the owner: folders and scripts 0700, other files 0600. Links are not followed."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)


def main(arguments: list[str]) -> int:
    """Open a kit into a folder."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python encryption.py KIT FOLDER\n")
        return 2
    os.umask(0o077)
    try:
        unpack(decrypt(Path(arguments[0]).read_bytes(), getpass.getpass("Passphrase: ")), Path(arguments[1]))
    except (EncryptionError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
