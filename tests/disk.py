"""A disk that a test can fill: a small tmpfs if this user may mount one, else a limit on file size."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NO_ROOM = r"\((No space left on device|File too large)\)"
_FILLER = "filler"
_LIMIT = 1000  # bytes per file, without a tmpfs


class SmallDisk:
    """A disk with the folder `folder`."""

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder = folder
        self._mounted = mounted
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """Fill the disk."""
        if not self._mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, self._hard))
            return
        with (self.folder / _FILLER).open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Free the disk again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._soft, self._hard))
        (self.folder / _FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A disk of 32 MiB at `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    disk = SmallDisk(folder, mounted)
    try:
        yield disk
    finally:
        disk.free()
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
