"""Training and scoring of a model on batches; knows nothing of sites, rounds or FLARE."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fedfms.errors import FedfmsError, TrainingError
from fedfms.methods import Tensors
from fedfms.study import TrainSpec
from fedfms.training.build import BuiltModel
from fedfms.training.losses import make_loss
from fedfms.training.metrics import Scores
from fedfms.training.prefix import PrefixCache

Batch = dict[str, Any]
Stop = Callable[[], bool]


class Aborted(Exception):
    """The run was told to stop; raised between batches."""


def never() -> bool:
    """The `Stop` of a run that nobody can stop."""
    return False


def batches(
    dataset: Dataset[Any], batch_size: int, *, workers: int = 0, shuffle: torch.Generator | None = None
) -> DataLoader[Any]:
    """Batches of `dataset` in its own order, or in the order that the generator draws; a fault comes as an item."""
    return DataLoader(
        _Faults(dataset), batch_size=batch_size, shuffle=shuffle is not None, generator=shuffle, num_workers=workers,
        collate_fn=_collate,
    )  # fmt: skip


class _Faults(Dataset[Any]):
    """Hands a fault on as an item: raised in a loader process, torch would make a trace with paths of its text."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except FedfmsError as error:
            return error


def _collate(items: list[Any]) -> Any:
    faults = [item for item in items if isinstance(item, FedfmsError)]
    return faults[0] if faults else default_collate(items)


class Trainer:
    """Runs a built model over batches of {"image": (B,3,H,W), "label": (B,C,m,m), "key": [str]}."""

    def __init__(
        self,
        built: BuiltModel,
        spec: TrainSpec,
        structures: Sequence[str],
        cache: PrefixCache | None = None,
        stop: Stop = never,
    ) -> None:
        self._built = built
        self._spec = spec
        self._structures = tuple(structures)
        self._loss = make_loss(spec)
        self._cache = cache
        self._stop = stop
        self._device = next(built.model.parameters()).device

    def optimizer(self, state: dict[str, Any] | None = None) -> torch.optim.Adam:
        """Adam over the trained tensors, in the state that an earlier round left."""
        trained = [p for p in self._built.model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self._spec.lr, betas=(self._spec.beta1, self._spec.beta2))
        if state is not None:
            optimizer.load_state_dict(state)
        return optimizer

    def epoch(
        self, loader: Iterable[Batch], optimizer: torch.optim.Optimizer, received: Tensors, *, cached: bool
    ) -> float:
        """One pass over the batches; returns the mean loss per slice.

        Args:
            received: the tensors that came from the server, for methods whose loss refers to them.
            cached: the images are as they lie on disk (no augmentation), so prefix outputs may be kept.

        Raises:
            TrainingError: the loss is not finite.
            Aborted: the run was told to stop.
        """
        own = {name: p for name, p in self._built.model.named_parameters() if p.requires_grad}
        total, count = 0.0, 0
        for batch in self._until_stopped(loader):
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self._logits(batch, cached), batch["label"].to(self._device))
            penalty = self._built.method.penalty(own, received)
            if penalty is not None:
                loss = loss + penalty
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(f"the loss became {value}", do="lower train.lr, or look at the site's images")
            loss.backward()
            optimizer.step()
            total, count = total + value * len(batch["image"]), count + len(batch["image"])
        return total / max(count, 1)

    @torch.no_grad()
    def score(self, loader: Iterable[Batch]) -> dict[str, Any]:
        """`Scores.result()` of the model over the batches."""
        scores = Scores(self._structures)
        for batch in self._until_stopped(loader):
            scores.add(self._logits(batch, cached=True).float().cpu(), batch["label"])
        return scores.result()

    @torch.no_grad()
    def predict(self, batch: Batch) -> torch.Tensor:
        """Masks (B, C, m, m), bool: sigmoid(logit) > 0.5."""
        return self._logits(batch, cached=True).cpu() > 0

    def _logits(self, batch: Batch, cached: bool) -> torch.Tensor:
        images = batch["image"].to(self._device)
        if cached and self._cache is not None:
            return self._built.model.from_prefix(self._cache.features(images, batch["key"]))
        return self._built.model(images)

    def _until_stopped(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in loader:
            if self._stop():
                raise Aborted
            if isinstance(batch, FedfmsError):
                raise batch
            yield batch
