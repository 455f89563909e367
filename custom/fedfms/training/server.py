"""What a server remembers between rounds, on disk: written whole after each round, and read without running it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fedfms.errors import TrainingError
from fedfms.methods import Server
from fedfms.training.state import read_tensors, write_tensors

_FORMAT = 1


class ServerStore:
    """The newest state of a run's server, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, server: Server) -> None:
        """Write the server as it is before round `server.round`, in place of an earlier one."""
        fields = {field.name: getattr(server, field.name) for field in dataclasses.fields(server)}
        write_tensors(self._path, {"format": _FORMAT, **fields})

    def load(self) -> Server | None:
        """The server that was saved, or None.

        Raises:
            TrainingError: the file is damaged, or of another version.
        """
        if not self._path.is_file():
            return None
        raw = read_tensors(self._path, "the server's state")
        if raw.pop("format", None) != _FORMAT:
            raise TrainingError("the server's state is of another version", do="finish the run with that version")
        return Server(**raw)
