"""A site's stored state: written atomically after each round, and loaded without running code.

There is one file per round in the run's folder, so that a round that is repeated after a crash starts from the state
before it; the two newest are retained.
"""

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

_FORMAT = 6
_RETAINED = 2
_NAME = re.compile(r"round_(\d{5})\.pt")


@dataclass(frozen=True)
class SiteState:
    """State after `round`.

    Attributes:
        trained: all trained tensors, private ones included.
        optimizer: its state.
        best_dice: best validation Dice of a received model so far.
        stored: what the method stores at the site.
        residual: with compression, the error-feedback residual.
        held: with compression, the shared tensors as last received, which the next differences refer to.
        held_digest: digest of `held`.
        micro_batch: slices of a step that fit into memory at once; 0: memory has not run out.
    """

    round: int
    trained: Tensors
    optimizer: dict[str, Any]
    best_dice: float | None = None
    stored: Tensors = field(default_factory=dict)
    residual: Tensors = field(default_factory=dict)
    held: Tensors = field(default_factory=dict)
    held_digest: str = ""
    micro_batch: int = 0


def save_model(path: Path, study: Study, tensors: Tensors) -> None:
    """Write the trained tensors of a personal model, with its study."""
    write_tensors(path, {"format": 1, "study": study.to_dict(), "tensors": tensors}, "the site's own model")


def read_tensors(path: Path, what: str, *, lazily: bool = False) -> dict[str, Any]:
    """Read what `write_tensors` wrote: tensors, numbers, texts, and lists and dicts of them. No code is run.

    Args:
        lazily: memory-map the tensors.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{what} cannot be read", do="remove the run's folder and start again") from error
    return content


def write_tensors(path: Path, content: dict[str, Any], what: str) -> None:
    """Write plain content with tensors atomically, mode 0600, without a copy in memory.

    One process at a time may write a file; temporary files of a killed process are removed.

    Args:
        what: its name in error messages.

    Raises:
        TrainingError: no room, or no permission; an earlier file is unchanged.
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
        if isinstance(error.__context__, OSError):  # no room: torch still closes its archive, and hides the cause
            raise error.__context__ from None
        raise


class StateStore:
    """The stored states of one site in one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: SiteState) -> None:
        """Write the state of a round, then remove later ones (of an abandoned course) and all but the newest two.

        Raises:
            TrainingError: as `write_tensors`; the earlier states are unchanged.
        """
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        write_tensors(self._path(state.round), {"format": _FORMAT, **fields}, f"the state after round {state.round}")
        rounds = self._rounds()
        retained = [round_ for round_ in rounds if round_ <= state.round][-_RETAINED:]
        for other in set(rounds) - set(retained):
            self._path(other).unlink(missing_ok=True)

    def load(self, before: int | None = None) -> SiteState | None:
        """The newest state of a round below `before` (None: of any round), or None where nothing is stored.

        Raises:
            TrainingError: the file is damaged, or missing while states of later rounds exist.
        """
        stored = self._rounds()
        rounds = [r for r in stored if before is None or r < before]
        if not rounds and stored and before:
            raise TrainingError(
                f"the state before round {before} is missing, the oldest is of round {stored[0]}",
                do=f"resume from round {stored[0] + 1}, or remove the run's folder and start again",
            )
        if not rounds:
            return None
        return self._read(rounds[-1])

    def held(self) -> dict[str, Tensors]:
        """With compression, what the site held after each stored round, by digest, the newest last.

        Raises:
            TrainingError: a file is damaged.
        """
        states = [self._read(round_, lazily=True) for round_ in self._rounds()]
        return {state.held_digest: state.held for state in states if state.held_digest}

    def _read(self, round_: int, *, lazily: bool = False) -> SiteState:
        raw = read_tensors(self._path(round_), f"the state saved after round {round_}", lazily=lazily)
        if raw.pop("format", None) != _FORMAT:
            raise TrainingError("the stored state has another format", do="finish the run with the version it began")
        return SiteState(**raw)

    def _path(self, round_: int) -> Path:
        return self._folder / f"round_{round_:05d}.pt"

    def _rounds(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self._folder.iterdir() if (m := _NAME.fullmatch(p.name)))
