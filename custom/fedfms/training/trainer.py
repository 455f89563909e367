"""Training and scoring of a model on batches; knows nothing of sites, rounds or FLARE."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fedfms.errors import FedfmsError, TrainingError
from fedfms.methods import Tensors
from fedfms.study import TrainSpec
from fedfms.training.build import BuiltModel
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
    """Runs a built model over batches of {"image": (B,3,H,W), "label": (B,C,m,m), "key": [str], "case": [str]}."""

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
        self._loss = built.method.loss(spec)
        self._cache = cache
        self._stop = stop
        self._device = next(built.model.parameters()).device

    def optimizer(self, round_: int, state: dict[str, Any] | None = None) -> torch.optim.Optimizer:
        """The method's optimizer of the trained parameters, in the state that an earlier round left."""
        optimizer = self._built.method.optimizer(self._built.parameters(), self._spec)
        if state is not None:
            optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = self._built.method.learning_rate(self._spec, round_)
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
        model = self._built.model
        received = {name: tensor.to(self._device) for name, tensor in received.items()}
        total, count = 0.0, 0
        model.train(model.train_mode)
        for batch in self.until_stopped(loader):
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self._logits(batch, cached), batch["label"].to(self._device))
            penalty = self._built.method.penalty(model, received)
            if penalty is not None:
                loss = loss + penalty
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(f"the loss became {value}", do="lower train.lr, or look at the site's images")
            loss.backward()
            optimizer.step()
            total, count = total + value * len(batch["image"]), count + len(batch["image"])
        model.eval()
        return total / max(count, 1)

    def gradients(self, batch: Batch, names: Collection[str]) -> tuple[float, Tensors]:
        """Loss of the model as it stands on a batch, without the method's penalty, and its gradients by `names`."""
        parameters = self._built.parameters()
        loss = self._loss(self._logits(batch, cached=True), batch["label"].to(self._device))
        chosen = [parameters[name] for name in names]
        grads = torch.autograd.grad(loss, chosen, allow_unused=True)
        return float(loss.detach()), {
            name: torch.zeros(p.shape) if g is None else g.cpu()
            for name, p, g in zip(names, chosen, grads, strict=True)
        }

    @torch.no_grad()
    def score(self, loader: Iterable[Batch], *, whole_cases: bool = True) -> Scores:
        """How the model does on the batches, by case too where the slices of each case are all among them."""
        self._built.model.eval()  # an epoch that was broken off leaves it training
        scores = Scores(self._structures)
        for batch in self.until_stopped(loader):
            logits = self._logits(batch, cached=True).float().cpu()
            scores.add(logits, batch["label"], batch["key"], batch["case"], by_case=whole_cases)
        return scores

    @torch.no_grad()
    def predict(self, batch: Batch) -> torch.Tensor:
        """Masks (B, C, m, m), bool: sigmoid(logit) > 0.5."""
        return self._logits(batch, cached=True).cpu() > 0

    def _logits(self, batch: Batch, cached: bool) -> torch.Tensor:
        images = batch["image"].to(self._device)
        if cached and self._cache is not None:
            return self._built.model.from_prefix(self._cache.features(images, batch["key"]))
        return self._built.model(images)

    def until_stopped(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; a fault among them, and the order to stop, are raised."""
        for batch in loader:
            if self._stop():
                raise Aborted
            if isinstance(batch, FedfmsError):
                raise batch
            yield batch
