"""Access to a raw folder: files are listed completely or an error is raised, and no file outside the folder is opened.

Error messages name no file and no folder below a site's folder, because such names may identify a patient.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedfms.errors import DataError
from fedfms.preprocessing.images import Fault

RIGHTS = "give this user the right to read it, then run the command again"
LINKED_FOLDER = "a link to a folder is not followed; put the folder itself there"


def reason(error: OSError) -> str:
    """The system's message without the path."""
    return error.strerror or type(error).__name__


@contextmanager
def readable(what: str, *, site: str = "") -> Iterator[None]:
    """Turn an OSError into a `DataError`: `what` (for instance "the raw folder") cannot be read."""
    try:
        yield
    except OSError as error:
        where = f"site {site}" if site else ""
        raise DataError(f"{what} cannot be read: {reason(error)}", where=where, do=RIGHTS) from error


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder. Unlike `Path.is_dir`, it never returns False because of missing rights.

    Raises:
        OSError: rights are missing.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def require_folder(path: Path, what: str) -> None:
    """Check that a folder exists.

    Raises:
        DataError: `what` (as an error calls the path) is not a folder or cannot be read.
    """
    with readable(what):
        exists = is_folder(path)
    if not exists:
        raise DataError(f"{what} is not a folder", do="see `fedfms prepare --help`")


def split_by_access(raw: Path) -> tuple[list[Path], int]:
    """Readable folders directly below `raw`, sorted, and the number of folders without access.

    Raises:
        DataError: `raw` itself cannot be read.
    """
    with readable("the raw folder"):
        paths = sorted(path for path in raw.iterdir() if not path.name.startswith("."))
    found, closed = [], 0
    for path in paths:
        try:
            if is_folder(path):
                is_folder(path / "images")  # fails if the folder itself is closed, whatever the name
                found.append(path)
        except OSError:
            closed += 1
    return found, closed


def sites_where(raw: Path, holds_site: Callable[[Path], bool]) -> list[str]:
    """Names of the folders directly below `raw` for which `holds_site` is true.

    A folder whose content cannot be read may be a site. It is listed, and the search for its cases reports the error.

    Raises:
        DataError: `raw` itself cannot be read.
    """

    def may_be_site(folder: Path) -> bool:
        try:
            return holds_site(folder)
        except OSError:
            return True

    return [folder.name for folder in split_by_access(raw)[0] if may_be_site(folder)]


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without hidden files and the content of hidden folders.

    Raises:
        OSError: as `walk`.
    """
    parts = {path: path.relative_to(folder).parts for path in walk(folder)}
    return sorted(path for path, names in parts.items() if not any(name.startswith(".") for name in names))


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder. A link to a folder counts as a file and is not followed.

    Raises:
        OSError: a folder cannot be read (`Path.rglob` would skip it).
    """

    def stop(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=stop):
        yield from (Path(place, name) for name in names)
        yield from (path for path in (Path(place, name) for name in folders) if path.is_symlink())


def reject_outside(root: Path, paths: Iterable[Path]) -> None:
    """Check that files, and the files in folders among them, lie in `root` (resolved) after links and `..`.

    Raises:
        Fault: a path leads out of `root` or cannot be resolved.
    """
    for path in paths:
        try:
            inside = path.resolve().is_relative_to(root)
            if inside and is_folder(path):
                inside = all(one.resolve().is_relative_to(root) for one in walk(path))
        except (OSError, RuntimeError) as error:  # RuntimeError: circular links
            raise Fault("one of its files cannot be accessed") from error
        if not inside:
            raise Fault("a link or `..` leads out of the raw folder; put the file itself there")
