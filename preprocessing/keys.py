"""Pseudonyms: keyed hashes of original names. The site stores the key and the table from ids to files, mode 0600.

The key file is `<raw>/.fedfms-keys/<dataset>-<site>.json`, or `<out>.keys/<dataset>-<site>.json` if the raw folder is
read-only. It is never inside the output folder.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from fedfms.errors import DataError
from fedfms.files import write_atomic
from fedfms.preprocessing.raw import reason
from fedfms.schema import STRICT, parse_bytes

FOLDER = ".fedfms-keys"
_NOTE = "the raw folder is read-only: the key file is in {}.keys, next to the output"
_HEX = 16  # 64 bits: a million cases collide with probability below 1e-7

Links = Mapping[str, Mapping[str, str]]  # role -> file name, by id


@dataclass(frozen=True)
class _KeyFile:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    version: Literal[1]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    links: Links


@dataclass(frozen=True)
class Keys:
    """A site's secret key and the path of its key file."""

    path: Path
    key: bytes
    links: Links
    note: str = ""  # a line to show if the key file is not in the raw folder

    def case_id(self, stem: str) -> str:
        """Pseudonym of a case by its original name."""
        return hmac.new(self.key, stem.encode(), hashlib.sha256).hexdigest()[:_HEX]

    def patient_id(self, patient: str) -> str:
        """Pseudonym of a patient; it differs from that of a case of the same name."""
        return "p" + hmac.new(self.key, f"patient\0{patient}".encode(), hashlib.sha256).hexdigest()[:_HEX]

    def save(self, links: Links) -> None:
        """Write the key and the table; new links replace old ones of the same id."""
        table = asdict(_KeyFile(1, self.key.hex(), {**self.links, **links}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.parent.chmod(0o700)
        write_atomic(self.path, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode(), mode=0o600)


def open_keys(raw: Path, out: Path, dataset: str, site: str) -> Keys:
    """The site's key: from an earlier conversion, otherwise a new random one.

    Raises:
        DataError: a key file or its folder cannot be read, or it would be inside the output folder.
    """
    name = f"{dataset}-{site}.json"
    in_raw, next_to_out = raw / FOLDER / name, out.parent / f"{out.name}.keys" / name
    where = f"{FOLDER}/{name}"
    try:
        existing = [path for path in (in_raw, next_to_out) if _exists(path)]
        path = in_raw if _writable(raw) and existing != [next_to_out] else next_to_out
        text = existing[0].read_bytes() if existing else None
    except OSError as error:
        do = "run the command as the user of the first conversion, or give this user the right to read it"
        raise DataError(f"the key file cannot be read: {reason(error)}", where=where, do=do) from error
    if path.resolve().is_relative_to(out.resolve()):
        raise DataError("the raw folder is inside the output folder", do="choose another --out")
    note = "" if path == in_raw else _NOTE.format(out.name)
    if text is None:
        return Keys(path, secrets.token_bytes(32), {}, note)
    do = "restore the key file; with a new key, all cases would get new ids"
    stored = parse_bytes(_KeyFile, text, DataError, where=where, do=do, key="key file", machine_written=True)
    return Keys(path, bytes.fromhex(stored.key), stored.links, note)


def _exists(path: Path) -> bool:
    """As `Path.is_file`, but missing rights raise an error; otherwise a new key would be made."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _writable(folder: Path) -> bool:
    """Whether new files may be made. False for root, too, if the folder's mode forbids it to everybody."""
    place = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    return os.access(place, os.W_OK) and bool(place.stat().st_mode & 0o222)
