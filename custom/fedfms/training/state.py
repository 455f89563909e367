"""What a site remembers between rounds: written whole after each round, never half, never code.

One file a round under the run's own folder, so that a round that is run again after a crash starts from the state
before it; the two newest are kept. Loading allows tensors, numbers and names only.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fedfms.errors import TrainingError
from fedfms.files import write_atomic
from fedfms.methods import Tensors
from fedfms.study import Study
from fedfms.training.error_context import MAKE_ROOM

_FORMAT = 5
_KEEP = 2
_NAME = re.compile(r"round_(\d{5})\.pt")


@dataclass(frozen=True)
class SiteState:
    """State after `round`: the site's own trained tensors (private ones among them), optimizer, best score, and what
    the method asked to keep.

    Where the wire is compressed also `residual`, what rounding has kept from the server so far, and `held`, the shared
    tensors as they last came, of digest `holds`: what the next differences are to.

    `micro_batch`: slices of a step that memory has been found to hold at a time; 0 = it has not run out.
    """

    round: int
    trained: Tensors
    optimizer: dict[str, Any]
    best_dice: float | None = None
    memory: Tensors = field(default_factory=dict)
    residual: Tensors = field(default_factory=dict)
    held: Tensors = field(default_factory=dict)
    holds: str = ""
    micro_batch: int = 0


def save_model(path: Path, study: Study, tensors: Tensors) -> None:
    """Write the trained tensors of a site's own model, with the study that they belong to."""
    write_tensors(path, {"format": 1, "study": study.to_dict(), "tensors": tensors}, "the site's own model")


def read_tensors(path: Path, what: str, *, lazily: bool = False) -> dict[str, Any]:
    """What `write_tensors` wrote: tensors, numbers, texts, and lists and dicts of them; no code is run.

    Args:
        lazily: leave tensors on disk until they are looked at.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{what} cannot be read", do="remove the run's folder and start again") from error
    return content


def write_tensors(path: Path, content: dict[str, Any], what: str) -> None:
    """Write plain content with tensors whole or not at all, for the owner's eyes only; no copy is made in memory.

    One process at a time may write a file; what a kill has left of an earlier try is removed.

    Args:
        what: what people call it.

    Raises:
        TrainingError: no room, or no right to the folder; what was there before is whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink()
        write_atomic(path, partial(_save, content), mode=0o600)
    except OSError as error:
        raise TrainingError(f"{what} cannot be written ({error.strerror})", do=MAKE_ROOM) from error


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # no room: torch ends its archive all the same, and hides it
            raise error.__context__ from None
        raise


class StateStore:
    """The states of one site in one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: SiteState) -> None:
        """Write the state of a round, then forget later ones, of a course that was left, and all but the newest two.

        Raises:
            TrainingError: as `write_tensors`; the earlier states are as they were.
        """
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        write_tensors(self._path(state.round), {"format": _FORMAT, **fields}, f"the state after round {state.round}")
        rounds = self._rounds()
        kept = [round_ for round_ in rounds if round_ <= state.round][-_KEEP:]
        for other in set(rounds) - set(kept):
            self._path(other).unlink(missing_ok=True)

    def load(self, before: int | None = None) -> SiteState | None:
        """The newest state of a round below `before` (of any round when None), or None when there is none.

        Raises:
            TrainingError: the file is damaged, or gone: only later rounds' are there.
        """
        stored = self._rounds()
        rounds = [r for r in stored if before is None or r < before]
        if not rounds and stored and before:
            raise TrainingError(
                f"the state before round {before} is gone, the oldest is of round {stored[0]}",
                do=f"go on from round {stored[0] + 1}, or remove the run's folder and start again",
            )
        if not rounds:
            return None
        return self._read(rounds[-1])

    def held(self) -> dict[str, Tensors]:
        """What the site held after each stored round, by digest, the newest last; empty where the wire is float32.

        Raises:
            TrainingError: a file is damaged.
        """
        states = [self._read(round_, lazily=True) for round_ in self._rounds()]
        return {state.holds: state.held for state in states if state.holds}

    def _read(self, round_: int, *, lazily: bool = False) -> SiteState:
        raw = read_tensors(self._path(round_), f"the state saved after round {round_}", lazily=lazily)
        if raw.pop("format", None) != _FORMAT:
            raise TrainingError("the saved state is of another version", do="finish the run with that version")
        return SiteState(**raw)

    def _path(self, round_: int) -> Path:
        return self._folder / f"round_{round_:05d}.pt"

    def _rounds(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self._folder.iterdir() if (m := _NAME.fullmatch(p.name)))
