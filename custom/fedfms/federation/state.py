"""What a server remembers between rounds, on disk: written whole after each round, and read without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedfms.errors import TrainingError
from fedfms.methods import ServerState, Tensors
from fedfms.training.state import read_tensors, write_tensors

FILE = "server.pt"
_FORMAT = 3


class Saved(NamedTuple):
    """A server as it was saved: its memory, what each site holds where the wire is compressed, and what the run is
    (`ServerStateStore.save`).
    """

    server: ServerState
    mirrors: dict[str, Tensors]
    run: dict[str, Any]


class ServerStateStore:
    """The newest state of a run's server, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(
        self, server: ServerState, mirrors: Mapping[str, Tensors] | None = None, run: Mapping[str, Any] | None = None
    ) -> None:
        """Write the server as it is before round `server.round`, in place of an earlier one.

        Args:
            mirrors: what each site holds, where the wire is compressed; tensors that are in several are written once.
            run: plain content by which a run goes on elsewhere (`fedfms.flare.resume`).

        Raises:
            TrainingError: no room, for instance; the earlier state is as it was.
        """
        fields = {field.name: getattr(server, field.name) for field in dataclasses.fields(server)}
        content = {"format": _FORMAT, "mirrors": dict(mirrors or {}), "run": dict(run or {}), **fields}
        write_tensors(self._path, content, "the server's state")

    def load(self) -> ServerState | None:
        """The server that was saved, or None.

        Raises:
            TrainingError: the file is damaged, or of another version.
        """
        saved = self.read()
        return None if saved is None else saved.server

    def mirrors(self) -> dict[str, Tensors]:
        """What each site holds (`fedfms.compression.DownlinkCompressor`); empty where nothing was saved.

        Raises:
            TrainingError: the file is damaged, or of another version.
        """
        saved = self.read()
        return {} if saved is None else saved.mirrors

    def read(self) -> Saved | None:
        """All that was saved, or None.

        Raises:
            TrainingError: the file is damaged, or of another version.
        """
        if not self._path.is_file():
            return None
        raw = read_tensors(self._path, "the server's state")
        if raw.pop("format", None) != _FORMAT:
            raise TrainingError("the server's state is of another version", do="finish the run with that version")
        mirrors, run = dict(raw.pop("mirrors")), dict(raw.pop("run"))
        return Saved(ServerState(**raw), mirrors, run)
