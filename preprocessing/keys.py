"""Pseudonyms: keyed hashes of original names, with the key and the table id -> file kept by the site, mode
0600.

The file lies beside the raw data (`<raw>/.fedfms-keys/<dataset>-<site>.json`), or, where that is read-only,
beside the output (`<out>.keys/...`), never inside it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfms.errors import DataError
from fedfms.files import write_atomic

FOLDER = ".fedfms-keys"
_NOTE = "the raw folder is read-only: the key file is in {}.keys, beside the output"
_HEX = 16  # 64 bits: a million cases collide with probability below 1e-7


@dataclass(frozen=True)
class Keys:
    """A site's secret key and where it is kept."""

    path: Path
    key: bytes
    links: Mapping[str, Mapping[str, str]]
    note: str = ""  # a line to show when the file is not beside the raw data

    def case_id(self, stem: str) -> str:
        """Pseudonym of an image's original relative stem."""
        return hmac.new(self.key, stem.encode(), hashlib.sha256).hexdigest()[:_HEX]

    def patient_id(self, patient: str) -> str:
        """Pseudonym of a patient; another one than a case of the same name has."""
        return "p" + hmac.new(self.key, f"patient\0{patient}".encode(), hashlib.sha256).hexdigest()[:_HEX]

    def save(self, links: Mapping[str, Mapping[str, str]]) -> None:
        """Write the key and the table, the new links over the old ones."""
        table = {"version": 1, "key": self.key.hex(), "links": {**self.links, **links}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.parent.chmod(0o700)
        write_atomic(self.path, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode(), mode=0o600)


def open_keys(raw: Path, out: Path, dataset: str, site: str) -> Keys:
    """The site's key: the one of an earlier run if there is one, otherwise a new random one.

    Raises:
        DataError: a key file or its place that cannot be read, or a place that would be inside the output.
    """
    name = f"{dataset}-{site}.json"
    beside_raw, beside_out = raw / FOLDER / name, out.parent / f"{out.name}.keys" / name
    try:
        there = [path for path in (beside_raw, beside_out) if _exists(path)]
        path = beside_raw if _writable(raw) and there != [beside_out] else beside_out
    except OSError as error:
        raise DataError(
            f"the key file's folder cannot be read: {error.strerror}", where=f"{FOLDER}/{name}",
            do="run it as the user who converted first, or give this one the right to read it",
        ) from error  # fmt: skip
    if path.resolve().is_relative_to(out.resolve()):
        raise DataError("the raw folder is inside the output folder", do="choose an output elsewhere")
    note = "" if path == beside_raw else _NOTE.format(out.name)
    if not there:
        return Keys(path, secrets.token_bytes(32), {}, note)
    key, links = _load(there[0])
    return Keys(path, key, links, note)


def _load(path: Path) -> tuple[bytes, dict[str, dict[str, str]]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        key, links = bytes.fromhex(table["key"]), dict(table["links"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the key file cannot be read", where=f"{FOLDER}/{path.name}",
            do="restore it: without it the cases get new ids",
        ) from error  # fmt: skip
    if len(key) != 32:
        raise DataError("the key is not 32 bytes long", where=f"{FOLDER}/{path.name}", do="restore the file")
    return key, links


def _exists(path: Path) -> bool:
    """As `Path.is_file`, which says False on some Pythons where a look is forbidden: a new key would be made."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _writable(folder: Path) -> bool:
    """Whether new files may be made: also false for an administrator where the folder's mode forbids it to
    all.
    """
    place = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    return os.access(place, os.W_OK) and bool(place.stat().st_mode & 0o222)
