"""Writing that survives a kill: write beside, fsync, rename; a reader sees the old file or the new one, never half."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedfms.errors import TrainingError

_BLOCK = 4096
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def no_room(error: OSError) -> bool:
    """Whether a write failed for want of room: the disk is full, a quota is used up, the file may not be so large."""
    return error.errno in _NO_ROOM


def write_atomic(
    path: Path, content: bytes | str | Callable[[BinaryIO], object], *, mode: int = 0o644, sync: bool = True
) -> None:
    """Put `content` in `path` at once; text as UTF-8. The file has `mode`, whatever the umask.

    What is large may be a function instead, which writes to the open file: no copy of it is made in memory.

    Without `sync` a power cut may lose or empty the file: for one of many that are checked when they are next met,
    with `os.sync` before anything says that they are there.

    Raises:
        OSError: no folder, no permission, no room; and whatever `content` raises; `path` is as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # there only if something went wrong, be it Ctrl-C
    if sync:
        _sync_folder(path.parent)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new folder beside `target`, then put it in the place of what is there.

    Raises:
        OSError: no folder, no permission, no room; and whatever `fill` raises; `target` is as it was.
    """
    target = target.resolve()
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        fill(fresh)
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # there only if something went wrong


def nearest(path: Path) -> Path:
    """The file or folder, or the nearest above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file and see it onto the disk. A kill leaves at most the last line unfinished.

    Such an unfinished line, left by a kill before, is cut off first: the new line would otherwise become a part of it.
    One process at a time may append to a file.

    Raises:
        ValueError: the text has a line break in it.
        OSError: no folder, no permission, no room.
    """
    if "\n" in line:
        raise ValueError("a line has no line break in it")
    new = not path.exists()
    with path.open("a+b") as file:
        _cut_unfinished(file.fileno())
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def _cut_unfinished(descriptor: int) -> None:
    """Truncate a file just after its last line break."""
    end = size = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[int]:
    """Lock `folder` against other processes that ask for its lock; gives the lock's file descriptor.

    The lock lasts as long as any process holds the descriptor open.

    Args:
        wait: wait for another process to release the lock.

    Raises:
        TrainingError: another process holds the lock, and `wait` is false; the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise TrainingError(f"cannot use {folder.name} ({error.strerror})", do="name another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise TrainingError(
                "another process works in this folder", where=folder.name, do="wait for it, or stop it"
            ) from None
        yield file.fileno()
