"""A site's training data, as methods see them before a round's training begins (`fedfms.methods.LocalData`)."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

from fedfms.methods import Tensors
from fedfms.training.build import BuiltModel
from fedfms.training.trainer import Trainer


class SiteLocalData:
    """Samples batches of a site's training slices; computes loss and gradients of its model on them."""

    def __init__(
        self, trainer: Trainer, built: BuiltModel, sample: Callable[[float, int, str], Iterable[Any]], round_: int
    ) -> None:
        self._trainer, self._built, self._sample, self._round = trainer, built, sample, round_

    def batches(self, share: float, purpose: str) -> Iterable[Any]:
        """See `LocalData.batches`."""
        return self._trainer.until_stopped(self._sample(share, self._round, purpose))

    def gradients(self, tensors: Tensors, names: Collection[str], batch: Any) -> tuple[float, Tensors]:
        """See `LocalData.gradients`. Side effect: the model's trained tensors are `tensors` afterwards."""
        self._built.load(tensors)
        return self._trainer.gradients(batch, names)
