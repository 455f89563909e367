"""Too little memory for a batch: it is worked off in smaller parts, to the same numbers, for the rest of the run."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from fedfms.errors import TrainingError
from fedfms.training.cpu_tuning import give_back

_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")
# Of torch's faults only the card's own has a type; the processor's and those of the card's libraries have words.
_SIGNS = ("can't allocate memory", "out of memory", "alloc_failed", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether a fault says that there is too little memory, on the card or beside the processor."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class MicroBatcher:
    """How many slices are worked off at a time: as the site has set it, and fewer once memory has run out.

    Args:
        size: 0 = a batch as a whole.
        whole: the work cannot be split; where memory runs out, that is told.
    """

    def __init__(self, size: int, *, whole: bool = False) -> None:
        self.most = 0  # what memory has been found to hold; 0 = it has not run out
        self._size = size
        self._whole = whole

    def work(self, slices: int, attempt: Callable[[int], _Made]) -> _Made:
        """`attempt(size)`; where memory runs out, again with half the size and the same random numbers.

        What an attempt leaves behind when it fails, the next one must remove or write over.

        Raises:
            TrainingError: memory runs out with one slice, or with a batch that cannot be split.
        """
        size, random = min(filter(None, (self._size, self.most, slices))), _random()
        while True:
            try:
                made = attempt(size)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            else:
                return made
            # Only here are the fault's frames gone, and with them the tensors of the failed attempt.
            size = self._smaller(size)
            _clear(random)

    def _smaller(self, size: int) -> int:
        if self._whole:
            what = f"memory ran out, and this model takes its batch of {size} slices as a whole"
            raise TrainingError(what, do="lower train.batch_size in the study")
        if size == 1:
            raise TrainingError(
                "memory ran out with one slice at a time",
                do="write `checkpointing: true` in the site's settings, or lower model.input_px in the study",
            )
        self.most = size // 2
        _log.warning("memory ran out with %d slices at a time: %d from here on", size, self.most)
        return self.most


def _random() -> list[torch.Tensor]:
    """The states of torch's generators, the processor's first."""
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cards]


def _clear(random: list[torch.Tensor]) -> None:
    """Give free memory back, and set the generators to where the failed attempt began."""
    gc.collect()
    give_back()
    torch.set_rng_state(random[0])
    if random[1:]:
        torch.cuda.empty_cache()
        torch.cuda.set_rng_state_all(random[1:])
