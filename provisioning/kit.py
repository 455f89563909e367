"""A kit as it travels: a sealed archive, with a list of its files whose code two people compare by telephone."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.kit import LIST, SOON, certificate, changes, code, common_name, days_left, listed, read_list, spoken
from provisioning.policy import BLOCKED
from provisioning.sealed import SealError, pack, restrict, seal, unpack, unseal

__all__ = [  # what a kit is once it is open has its own file, at every site
    "LIST", "SOON", "SUFFIX", "blocked_list", "certificate", "changes", "code", "common_name", "days_left", "finish",
    "open_kit", "put_blocked", "seal_kit", "spoken",
]  # fmt: skip
SUFFIX = ".kit"


def seal_kit(folder: Path, target: Path, passphrase: str) -> str:
    """Write the kit in `folder` as a sealed archive; returns the code of its list."""
    told = finish(folder)
    write_atomic(target, seal(pack(folder), passphrase), mode=0o600)
    return told


def finish(folder: Path) -> str:
    """Write the list of a kit's files, and take everybody else's rights; returns the list's code."""
    write_atomic(folder / LIST, listed(folder), mode=0o600)
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
    if not (folder / LIST).is_file() or listed(folder, str(folder.resolve())).encode() != read_list(folder):
        shutil.rmtree(folder)
        raise ProvisioningError("the files are not those of the kit's list", where=sealed.name, do="tell the lead")
    return code(folder)


def put_blocked(source: Path, server: Path) -> None:
    """Put the list of blocked serials into the server's kit, where it is read anew each time.

    Raises:
        ProvisioningError: it is no server's kit of ours.
    """
    write_atomic(blocked_list(server), source.read_bytes(), mode=0o600)


def blocked_list(server: Path) -> Path:
    """Where the server's kit has its list of blocked serials.

    Raises:
        ProvisioningError: it is no server's kit of ours.
    """
    target = server / "local" / BLOCKED
    if not target.is_file():
        raise ProvisioningError("this is no server's kit of ours", where=server.name, do="name its folder")
    return target
