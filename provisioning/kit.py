"""Encrypt a startup kit with a list of its files, and open it; people compare the list's fingerprint by telephone."""

import shutil
from pathlib import Path

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.kit import LIST_FILE, file_list, kit_fingerprint, read_file_list
from fedfms.provisioning.encryption import EncryptionError, decrypt, encrypt, pack, restrict, unpack
from fedfms.provisioning.policy import REVOKED

SUFFIX = ".kit"


def encrypt_kit(folder: Path, target: Path, passphrase: str) -> str:
    """Write the kit in `folder` to the encrypted file `target`; returns the kit's fingerprint."""
    fingerprint = write_file_list(folder)
    write_atomic(target, encrypt(pack(folder), passphrase), mode=0o600)
    return fingerprint


def write_file_list(folder: Path) -> str:
    """Write the list of a kit's files, and limit access to the owner; returns the kit's fingerprint."""
    write_atomic(folder / LIST_FILE, file_list(folder), mode=0o600)
    restrict(folder)
    return kit_fingerprint(folder)


def open_kit(encrypted: Path, folder: Path, passphrase: str) -> str:
    """Decrypt a kit into a new folder; returns its fingerprint, to compare with the lead's.

    Raises:
        ProvisioningError: it cannot be read, the passphrase is wrong, a bit was changed, the folder exists, or the
            files do not match the kit's file list: the fingerprint would vouch for other files.
    """
    try:
        unpack(decrypt(encrypted.read_bytes(), passphrase), folder)
    except OSError as error:
        raise ProvisioningError(f"the kit cannot be opened ({error.strerror})", where=encrypted.name) from None
    except EncryptionError as error:
        raise ProvisioningError(str(error), where=encrypted.name) from None
    found = file_list(folder, str(folder.resolve())).encode()
    if not (folder / LIST_FILE).is_file() or found != read_file_list(folder):
        shutil.rmtree(folder)
        what = "the files do not match the kit's file list"
        raise ProvisioningError(what, where=encrypted.name, do="inform the lead")
    return kit_fingerprint(folder)


def revocation_list(server: Path) -> Path:
    """The revocation list in an opened server's kit, which the server reads at each check."""
    target = server / "local" / REVOKED
    if not target.is_file():
        raise ProvisioningError("this is not a server's kit of this package", where=server.name, do="name its folder")
    return target
