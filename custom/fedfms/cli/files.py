"""Reading and writing what a command names, with faults that a person can read."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfms.errors import SettingsError, StudyError
from fedfms.files import nearest, write_atomic

if TYPE_CHECKING:
    from fedfms.settings import SiteSettings


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        StudyError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path.name} cannot be read ({error.strerror})", do="name a file that is there") from None
    except ValueError:
        raise StudyError(f"{path.name} is not JSON", do="name a file that `fedfms` wrote") from None


def write(path: Path, content: str | bytes) -> None:
    """Put the content there at once, into a folder that is made if it is not there.

    Raises:
        StudyError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise StudyError(f"cannot write {path.name} ({error.strerror})", do="name another place") from None


def can_be_folder(path: Path, option: str) -> None:
    """See that a folder is there, or can be made there.

    Raises:
        StudyError: it, or what it would lie in, is a file.
    """
    there = nearest(path)
    if not there.is_dir():
        raise StudyError(f"{there.name} is a file", where=option, do="name a folder")


def settings_here(root: Path | None, named: Path | None = None) -> SiteSettings:
    """The settings of this site (`fedfms.settings.load_settings`), with another data root where one is given.

    Raises:
        SettingsError: as `load_settings`; `root` is not a folder.
    """
    from fedfms.settings import load_settings

    if root is not None and not root.is_dir():
        raise SettingsError("--root is not a folder", do="name the one that `python -m preprocessing --out` named")
    settings = load_settings(named=named)
    return settings if root is None else replace(settings, data_root=root.resolve())


def comma(text: str) -> list[str]:
    """`a,b` -> its names."""
    return [name for name in text.split(",") if name]


def positive(text: str) -> int:
    """A number, 1 or more; an argument that is none is told as argparse does."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A number, 0 or more; as `positive`."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a number, {least} or more")
    return int(text)


def numbers(text: str) -> list[int]:
    """`0,1,2` -> its numbers; an argument that is none is told as argparse does."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError("must be numbers, as in 0,1,2")
    return [int(part) for part in text.split(",")]
