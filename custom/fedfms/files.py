"""Writes that survive a kill: write a temporary file, fsync, rename. A reader sees the old file or the new one."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fedfms.errors import TrainingError

_JSON_COLUMNS = 120
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because of a full disk, an exhausted quota or a limit on file size."""
    return error.errno in _DISK_FULL


def write_atomic(
    path: Path, content: bytes | str | Callable[[BinaryIO], object], *, mode: int = 0o644, sync: bool = True
) -> None:
    """Write `content` to `path` atomically; text as UTF-8. The file gets `mode`, whatever the umask.

    Large content may be a function that writes to the open file, which avoids a copy in memory.

    Without `sync`, a power cut may lose or empty the file. Use it for one of many files that are validated when read,
    and call `os.sync` before anything records that they exist.

    Raises:
        OSError: no folder, no permission, disk full; also whatever `content` raises. `path` is then unchanged.
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
        temporary.unlink(missing_ok=True)  # exists only after an error or Ctrl-C
    if sync:
        _sync_folder(path.parent)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new folder next to `target`, then replace `target` with it.

    Raises:
        OSError: `target` is a file; no folder, no permission, disk full; also whatever `fill` raises. `target` is then
            unchanged.
    """
    target = target.resolve()
    fresh, old = (target.with_name(f".{target.name}.{name}") for name in ("new", "old"))
    _restore(old, target)  # after a kill
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        fill(fresh)
        if target.exists():
            if not target.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            target.rename(old)  # a kill during removal would leave a part of it
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        _restore(old, target)  # after an error
        shutil.rmtree(fresh, ignore_errors=True)  # exists only after an error


def _restore(old: Path, target: Path) -> None:
    if old.exists() and not target.exists():
        old.rename(target)


def nearest(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file and fsync it. A kill leaves at most the last line incomplete.

    An incomplete last line of an earlier kill is removed first. One process at a time may append to a file.

    Raises:
        ValueError: the text contains a line break.
        OSError: no folder, no permission, disk full.
    """
    if "\n" in line:
        raise ValueError("a line must not contain a line break")
    new = not path.exists()
    with path.open("a+b") as file:
        _remove_incomplete_line(file)
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def json_text(content: Any) -> str:
    """`content` as JSON text with one line per record, for files that people compare.

    A list or mapping is written on one line if it holds no other, or fits in 120 columns.
    """
    return f"{_json_lines(content, '')}\n"


def _json_lines(value: Any, indent: str) -> str:
    line = json.dumps(value, allow_nan=False)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    if len(indent) + len(line) <= _JSON_COLUMNS or not any(isinstance(item, Mapping | list | tuple) for item in items):
        return line
    deeper = f"{indent} "
    parts = [_json_lines(item, deeper) for item in items]
    if isinstance(value, Mapping):
        parts = [f"{json.dumps(key)}: {part}" for key, part in zip(value, parts, strict=True)]
    separator = f",\n{deeper}"
    return f"{line[0]}\n{deeper}{separator.join(parts)}\n{indent}{line[-1]}"


def _remove_incomplete_line(file: BinaryIO) -> None:
    """Truncate a file after its last line break."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[int]:
    """Lock `folder` against other processes that call this; yields the lock's file descriptor.

    The lock lasts as long as any process holds the descriptor open.

    Args:
        wait: wait for another process to release the lock.

    Raises:
        TrainingError: another process holds the lock, and `wait` is false; or the folder cannot be created.
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
            what = "another process is using this folder"
            raise TrainingError(what, where=folder.name, do="wait for it, or stop it") from None
        yield file.fileno()
