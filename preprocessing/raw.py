"""Looking into a raw folder: nothing is passed over in silence, and nothing outside of it is opened.

What is said names no file and no folder below a site's, for such a name may be a patient's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fedfms.errors import DataError
from preprocessing.images import Fault

RIGHTS = "give this user the right to read it, then run it again"


def is_folder(path: Path) -> bool:
    """Whether a folder is there. `Path.is_dir` says False on some Pythons where a look is forbidden; this never.

    Raises:
        OSError: it cannot be known, for rights are missing.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def need_folder(path: Path, what: str) -> None:
    """See that a folder is there, which an error calls `what`.

    Raises:
        DataError: it is not, or it cannot be looked at.
    """
    try:
        there = is_folder(path)
    except OSError as error:
        raise DataError(f"{what} cannot be read: {reason(error)}", do="give this user the right to") from error
    if not there:
        raise DataError(f"{what} is not a folder", do="see `python -m preprocessing --help`")


def split_by_access(raw: Path) -> tuple[list[Path], int]:
    """Folders directly below `raw`, by name, and how many more could not be looked into.

    Raises:
        DataError: `raw` itself cannot be read.
    """
    try:
        paths = sorted(path for path in raw.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"the raw folder cannot be read: {reason(error)}", do=RIGHTS) from error
    found, closed = [], 0
    for path in paths:
        try:
            if is_folder(path):
                is_folder(path / "images")  # any name: what counts is whether the question is allowed
                found.append(path)
        except OSError:
            closed += 1
    return found, closed


def sites_where(raw: Path, holds: Callable[[Path], bool]) -> list[str]:
    """Folders directly below `raw` of which `holds` is true, by name.

    A folder in which something cannot be read may be a site: it is named, and looking for its cases says so.

    Raises:
        DataError: `raw` itself cannot be read.
    """

    def may_be_one(folder: Path) -> bool:
        try:
            return holds(folder)
        except OSError:
            return True

    return [folder.name for folder in split_by_access(raw)[0] if may_be_one(folder)]


def shown(folder: Path) -> list[Path]:
    """All files below a folder, in order, but those whose name, or a folder's on the way to them, begins with a dot.

    Raises:
        OSError: as `walk`.
    """
    parts = {path: path.relative_to(folder).parts for path in walk(folder)}
    return sorted(path for path, names in parts.items() if not any(name.startswith(".") for name in names))


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder. A link to a folder counts as a file: what is behind it may be anything.

    Raises:
        OSError: a folder cannot be read (`Path.rglob` leaves it out).
    """

    def stop(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=stop):
        yield from (Path(place, name) for name in names)
        yield from (path for path in (Path(place, name) for name in folders) if path.is_symlink())


def refuse_outside(root: Path, paths: Iterable[Path]) -> None:
    """See that files, and those in folders among them, lie in `root` (resolved), whatever links and `..` they
    go through: a name in a table or a link in an archive may lead anywhere.

    Raises:
        Fault: one does not, or it cannot be known.
    """
    for path in paths:
        try:
            inside = path.resolve().is_relative_to(root)
            if inside and is_folder(path):
                inside = all(one.resolve().is_relative_to(root) for one in walk(path))
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise Fault("one of its files cannot be looked at") from error
        if not inside:
            raise Fault("a link or `..` leads out of the raw folder; put the file itself there")


def reason(error: OSError) -> str:
    """What the system says; the error's own text would name the path."""
    return error.strerror or type(error).__name__
