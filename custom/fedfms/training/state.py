"""What a site remembers between rounds: written whole after each round, never half, never code.

One file a round under the run's own folder, so that a round that is run again after a crash starts from the state
before it; the two newest are kept. Loading allows tensors, numbers and names only.
"""

from __future__ import annotations

import io
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedfms.errors import TrainingError
from fedfms.files import write_atomic
from fedfms.methods import Tensors

_FORMAT = 1
_KEEP = 2
_NAME = re.compile(r"round_(\d{5})\.pt")


@dataclass(frozen=True)
class SiteState:
    """State after `round`: the site's own trained tensors (private ones among them), optimizer and best score."""

    round: int
    trained: Tensors
    optimizer: dict[str, Any]
    best_dice: float | None = None
    history: tuple[dict[str, Any], ...] = field(default_factory=tuple)


class StateStore:
    """The states of one site in one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: SiteState) -> None:
        """Write the state of a round, then forget all but the newest two."""
        self._folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(
            {
                "format": _FORMAT,
                "round": state.round,
                "trained": state.trained,
                "optimizer": state.optimizer,
                "best_dice": state.best_dice,
                "history": list(state.history),
            },
            buffer,
        )
        write_atomic(self._folder / f"round_{state.round:05d}.pt", buffer.getvalue(), mode=0o600)
        for old in self._rounds()[:-_KEEP]:
            self._path(old).unlink(missing_ok=True)

    def load(self, before: int | None = None) -> SiteState | None:
        """The newest state of a round below `before` (of any round when None), or None when there is none.

        Raises:
            TrainingError: the file is damaged.
        """
        rounds = [r for r in self._rounds() if before is None or r < before]
        if not rounds:
            return None
        try:
            raw = torch.load(self._path(rounds[-1]), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"the state saved after round {rounds[-1]} cannot be read", do="remove the run's folder and start again"
            ) from error
        if raw.get("format") != _FORMAT:
            raise TrainingError("the saved state is of another version", do="finish the run with that version")
        return SiteState(
            round=raw["round"],
            trained=raw["trained"],
            optimizer=raw["optimizer"],
            best_dice=raw["best_dice"],
            history=tuple(raw["history"]),
        )

    def _path(self, round_: int) -> Path:
        return self._folder / f"round_{round_:05d}.pt"

    def _rounds(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self._folder.iterdir() if (m := _NAME.fullmatch(p.name)))
