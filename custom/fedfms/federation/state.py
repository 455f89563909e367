"""The server state on disk: written whole after each round, and loaded without running code."""

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
    """A saved server state, what each site holds (with compression), and what identifies the run."""

    server: ServerState
    mirrors: dict[str, Tensors]
    run: dict[str, Any]


class ServerStateStore:
    """The newest server state of a run, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(
        self, server: ServerState, mirrors: Mapping[str, Tensors] | None = None, run: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the stored state by the one before round `server.round`.

        Args:
            mirrors: what each site holds, with compression; tensors that occur several times are written once.
            run: plain content with which another job resumes the run (`fedfms.flare.resume`).

        Raises:
            TrainingError: no room, for instance; the earlier state is unchanged.
        """
        fields = {field.name: getattr(server, field.name) for field in dataclasses.fields(server)}
        content = {"format": _FORMAT, "mirrors": dict(mirrors or {}), "run": dict(run or {}), **fields}
        write_tensors(self._path, content, "the server's state")

    def load(self) -> ServerState | None:
        """The stored server state, or None.

        Raises:
            TrainingError: the file is damaged, or has another format.
        """
        saved = self.read()
        return None if saved is None else saved.server

    def mirrors(self) -> dict[str, Tensors]:
        """What each site holds (`fedfms.compression.DownlinkCompressor`); empty where nothing is stored.

        Raises:
            TrainingError: the file is damaged, or has another format.
        """
        saved = self.read()
        return {} if saved is None else saved.mirrors

    def read(self) -> Saved | None:
        """All that is stored, or None.

        Raises:
            TrainingError: the file is damaged, or has another format.
        """
        if not self._path.is_file():
            return None
        raw = read_tensors(self._path, "the server's state")
        if raw.pop("format", None) != _FORMAT:
            raise TrainingError("the server's state has another format", do="finish the run with the version it began")
        mirrors, run = dict(raw.pop("mirrors")), dict(raw.pop("run"))
        return Saved(ServerState(**raw), mirrors, run)
