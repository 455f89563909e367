"""Passphrases: made, or asked for; from a prompt, a file that only its owner reads, or the environment.

Never from the command line, which every process of the machine can read, and never into a log or a message.
"""

from __future__ import annotations

import getpass
import os
import secrets
import stat
import sys
from pathlib import Path

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import PASSPHRASE as ENV

MIN_LENGTH = 12
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is mistaken for another, on paper or by ear


def make_passphrase() -> str:
    """25 letters and digits in groups of five: 123 bits."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(5))


def passphrase(file: Path | None, *, new: bool = False) -> str:
    """The passphrase: from `file`, else from FEDFMS_PASSPHRASE, else from whoever sits at the terminal.

    Args:
        new: it is to seal something: it must be long enough, and is asked for twice.

    Raises:
        ProvisioningError: there is none, it is short, or others may read the file.
    """
    if file is not None:
        found = _from_file(file)
    elif os.environ.get(ENV):
        found = os.environ[ENV]
    elif sys.stdin.isatty():
        found = getpass.getpass("Passphrase: ")
        if new and found != getpass.getpass("Again: "):
            raise ProvisioningError("the two passphrases differ", do="type it again")
    else:
        raise ProvisioningError(
            "there is no passphrase", do=f"name a file with --passphrase-file, set {ENV}, or run it in a terminal"
        )
    if new and len(found) < MIN_LENGTH:
        raise ProvisioningError("the passphrase is too short", do=f"take {MIN_LENGTH} characters or more")
    return found


def _from_file(file: Path) -> str:
    do = "name a file that is there, of mode 0600"
    try:
        with file.open(encoding="utf-8") as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise ProvisioningError("others can read the passphrase's file", do="chmod 600 it")
            return opened.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise ProvisioningError("the passphrase's file cannot be read", do=do) from None
