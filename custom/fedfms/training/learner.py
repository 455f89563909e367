"""What a method may ask of a site's training data before a round's training begins (`fedfms.methods.LocalData`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from fedfms.methods import Tensors
from fedfms.training.build import BuiltModel
from fedfms.training.trainer import Trainer


class SiteLearner:
    """Batches of a site's own training slices, and the loss and gradients of the site's model on them."""

    def __init__(
        self, trainer: Trainer, built: BuiltModel, sample: Callable[[float, int, str], Iterable[Any]], round_: int
    ) -> None:
        self._trainer = trainer
        self._built = built
        self._sample = sample
        self._round = round_

    def batches(self, share: float, purpose: str) -> Iterable[Any]:
        """See `LocalData.batches`."""
        return self._trainer.until_stopped(self._sample(share, self._round, purpose))

    def gradients(self, tensors: Tensors, names: Collection[str], batch: Any) -> tuple[float, Tensors]:
        """See `LocalData.gradients`; the model keeps `tensors`."""
        self._built.load(tensors)
        return self._trainer.gradients(batch, names)
