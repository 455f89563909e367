"""Splits a batch into micro-batches, and retries with smaller ones when memory runs out."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from fedfms.errors import TrainingError
from fedfms.training.cpu_tuning import release_memory

_log = logging.getLogger(__name__)
T = TypeVar("T")
# torch has an exception type for CUDA's allocator only; errors of the CPU's and of CUDA libraries differ by text.
_SIGNS = ("can't allocate memory", "out of memory", "alloc_failed", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means too little memory, of the GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class MicroBatcher:
    """Chooses the number of slices per micro-batch: the site's setting, and fewer once memory has run out.

    Args:
        size: slices per micro-batch; 0 = the whole batch.
        whole: the batch must not be split; running out of memory is then an error.
    """

    def __init__(self, size: int, *, whole: bool = False) -> None:
        self.max_slices = 0  # known to fit in memory; 0 = memory has not run out
        self._size = size
        self._whole = whole

    def run(self, slices: int, attempt: Callable[[int], T]) -> T:
        """Return `attempt(size)`; when memory runs out, halve `size` and retry with the same random numbers.

        `attempt` must overwrite or remove what a failed attempt left behind.

        Raises:
            TrainingError: memory runs out with one slice, or with a batch that must not be split.
        """
        size, rng_states = min(filter(None, (self._size, self.max_slices, slices))), _rng_states()
        while True:
            try:
                return attempt(size)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            # Only after the handler are the exception's frames gone, and with them the failed attempt's tensors.
            size = self._halve(size)
            _reset(rng_states)

    def _halve(self, size: int) -> int:
        if self._whole:
            what = f"out of memory with a batch of {size} slices, which this model cannot split"
            raise TrainingError(what, do="lower train.batch_size in the study")
        if size == 1:
            raise TrainingError(
                "out of memory with a micro-batch of one slice",
                do="set `gradient_checkpointing: true` in the site's settings, or lower model.input_px in the study",
            )
        self.max_slices = size // 2
        _log.warning("out of memory with micro-batches of %d slices; continuing with %d", size, self.max_slices)
        return self.max_slices


def _rng_states() -> list[torch.Tensor]:
    """The states of torch's generators: the CPU's, then each GPU's."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *gpus]


def _reset(rng_states: list[torch.Tensor]) -> None:
    """Release free memory and restore the generators."""
    gc.collect()
    release_memory()
    torch.set_rng_state(rng_states[0])
    if rng_states[1:]:
        torch.cuda.empty_cache()
        torch.cuda.set_rng_state_all(rng_states[1:])
