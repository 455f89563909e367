"""Generate passphrases, and read them from a prompt, a file that only its owner can read, or the environment.

Never from the command line, which every process of the machine can read. Passphrases never appear in a log or message.
"""

import getpass
import os
import secrets
import stat
import sys
from pathlib import Path

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import PASSPHRASE_VARIABLE

MIN_LENGTH = 12
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that are easily confused


def generate_passphrase() -> str:
    """25 letters and digits in groups of five: 123 bits."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(5))


def read_passphrase(file: Path | None, *, new: bool = False) -> str:
    """The passphrase from `file`, else from FEDFMS_PASSPHRASE, else from the terminal.

    Args:
        new: it will encrypt something: require a minimum length, and ask twice.

    Raises:
        ProvisioningError: there is none, it is too short, or others can read the file.
    """
    if file is not None:
        found = _from_file(file)
    elif os.environ.get(PASSPHRASE_VARIABLE):
        found = os.environ[PASSPHRASE_VARIABLE]
    elif sys.stdin.isatty():
        found = getpass.getpass("Passphrase: ")
        if new and found != getpass.getpass("Again: "):
            raise ProvisioningError("the two passphrases differ", do="type it again")
    else:
        do = f"name a file with --passphrase-file, set {PASSPHRASE_VARIABLE}, or use a terminal"
        raise ProvisioningError("there is no passphrase", do=do)
    if new:
        check_length(found)
    return found


def check_length(passphrase: str) -> None:
    """Check that a passphrase is long enough to encrypt something.

    Raises:
        ProvisioningError: it is too short.
    """
    if len(passphrase) < MIN_LENGTH:
        raise ProvisioningError("the passphrase is too short", do=f"use at least {MIN_LENGTH} characters")


def _from_file(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise ProvisioningError("others can read the passphrase file", do="chmod 600 it")
            return opened.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise ProvisioningError("the passphrase file cannot be read", do="name a readable file of mode 0600") from None
