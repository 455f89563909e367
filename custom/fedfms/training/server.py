"""What a server remembers between rounds, on disk: written whole after each round, and read without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfms.errors import TrainingError
from fedfms.methods import Server, Tensors
from fedfms.training.state import read_tensors, write_tensors

_FORMAT = 2


class ServerStore:
    """The newest state of a run's server, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, server: Server, mirrors: Mapping[str, Tensors] | None = None) -> None:
        """Write the server as it is before round `server.round`, in place of an earlier one.

        Args:
            mirrors: what each site holds, where the wire is compressed; tensors that are in several are written once.

        Raises:
            TrainingError: no room, for instance; the earlier state is as it was.
        """
        fields = {field.name: getattr(server, field.name) for field in dataclasses.fields(server)}
        write_tensors(self._path, {"format": _FORMAT, "mirrors": dict(mirrors or {}), **fields}, "the server's state")

    def load(self) -> Server | None:
        """The server that was saved, or None.

        Raises:
            TrainingError: the file is damaged, or of another version.
        """
        raw = self._read()
        return Server(**{name: value for name, value in raw.items() if name != "mirrors"}) if raw else None

    def mirrors(self) -> dict[str, Tensors]:
        """What each site holds (`fedfms.wire.Downlink`); empty where nothing was saved.

        Raises:
            TrainingError: the file is damaged, or of another version.
        """
        return dict(self._read().get("mirrors", {}))

    def _read(self) -> dict[str, Any]:
        if not self._path.is_file():
            return {}
        raw = read_tensors(self._path, "the server's state")
        if raw.pop("format", None) != _FORMAT:
            raise TrainingError("the server's state is of another version", do="finish the run with that version")
        return raw
