"""Training and scoring of a model on batches; knows nothing of sites, rounds or FLARE."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fedfms.errors import FedfmsError, TrainingError
from fedfms.methods import Tensors
from fedfms.methods.optimizers import Scaled
from fedfms.study import TrainSpec
from fedfms.training.build import BuiltModel
from fedfms.training.metrics import Scores
from fedfms.training.micro_batch import MicroBatcher
from fedfms.training.precision import Forward
from fedfms.training.prefix import PrefixCache

Batch = dict[str, Any]
Stop = Callable[[], bool]
_SCALES = (2.0**16, 2.0**12, 2.0**8, 1.0)  # powers of two, which take nothing from a gradient


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
    """Runs a built model over batches of {"image": (B,3,H,W), "label": (B,C,m,m), "key": [str], "case": [str]}.

    With `built.micro_batch`, a step's batch is worked off in parts and their gradients are summed, each by its share of
    the slices: the same numbers, as the losses of `fedfms.methods.losses` are means over slices. A model that needs
    its batch whole (it trains in training mode, or buffers move with each batch) is not split in training. Where memory
    runs out, the batch is worked off again in smaller parts, in training and in scoring (`fedfms.training.micro_batch`).

    Raises:
        TrainingError: the model's device cannot compute in the study's precision.
    """

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
        self._stop = stop
        self._forward = Forward(built.model, spec.precision, cache, tuned=built.tuned)
        self._forward.store_frozen(built.partition.trained)
        self._device = self._forward.device
        whole = bool(built.model.train_mode or built.model.moving_buffers())
        self._training = MicroBatcher(0 if whole else built.micro_batch, whole=whole)
        self._scoring = MicroBatcher(built.micro_batch)
        self.waited_s = 0.0  # for batches, in all

    @property
    def most(self) -> int:
        """Slices of a step that memory has been found to hold at a time; 0 while it has not run out."""
        return self._training.most

    @most.setter
    def most(self, slices: int) -> None:
        self._training.most = slices

    def optimizer(self, round_: int, state: dict[str, Any] | None = None) -> torch.optim.Optimizer:
        """The method's optimizer of the trained parameters, in the state that an earlier round left."""
        optimizer = self._built.method.optimizer(self._built.parameters(), self._spec)
        if self._spec.precision == "float16":
            optimizer = Scaled(optimizer, torch.amp.GradScaler(self._device.type))
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
            value = self._step(batch, optimizer, received, cached)
            total, count = total + value * len(batch["image"]), count + len(batch["image"])
        model.eval()
        return total / max(count, 1)

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer, received: Tensors, cached: bool) -> float:
        """One step on a batch; returns its loss, the method's penalty, which is added once, included."""
        backward = partial(self._backward, batch, optimizer, received, cached)
        value = self._training.work(len(batch["image"]), backward)
        optimizer.step()  # outside: half of a step cannot be taken back, and the round's start is on disk
        return value

    def _backward(
        self, batch: Batch, optimizer: torch.optim.Optimizer, received: Tensors, cached: bool, size: int
    ) -> float:
        """The gradients of a step, `size` slices at a time, in place of all that there were; returns its loss."""
        optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for index, (part, share) in enumerate(_parts(batch, size)):
            loss = share * self._loss(self._logits(part, cached), part["label"].to(self._device))
            penalty = None if index else self._built.method.penalty(self._built.model, received)
            if penalty is not None:
                loss = loss + penalty
            value += float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(f"the loss became {value}", do="lower train.lr, or look at the site's images")
            if isinstance(optimizer, Scaled):
                loss = optimizer.scale(loss)
            with self._forward.products():
                loss.backward()
        return value

    def gradients(self, batch: Batch, names: Collection[str]) -> tuple[float, Tensors]:
        """Loss of the model as it stands on a batch, without the method's penalty, and its gradients by `names`.

        In float16 they are of the loss scaled, as a step's are: by the largest of `_SCALES` at which all are finite.
        """
        for scale in _SCALES if self._spec.precision == "float16" else (1.0,):
            value, sums = self._training.work(len(batch["image"]), partial(self._gradients, batch, names, scale))
            if all(total.isfinite().all() for total in sums):
                break
        return value, {name: total.div_(scale).cpu() for name, total in zip(names, sums, strict=True)}

    def _gradients(
        self, batch: Batch, names: Collection[str], scale: float, size: int
    ) -> tuple[float, list[torch.Tensor]]:
        parameters = self._built.parameters()
        chosen = [parameters[name] for name in names]
        value, sums = 0.0, [torch.zeros_like(p) for p in chosen]
        for part, share in _parts(batch, size):
            loss = share * self._loss(self._logits(part, cached=True), part["label"].to(self._device))
            value += float(loss.detach())
            with self._forward.products():
                grads = torch.autograd.grad(loss * scale, chosen, allow_unused=True)
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total += grad
        return value, sums

    @torch.no_grad()
    def score(self, loader: Iterable[Batch], *, whole_cases: bool = True) -> Scores:
        """How the model does on the batches, by case too where the slices of each case are all among them."""
        self._built.model.eval()  # an epoch that was broken off leaves it training
        scores = Scores(self._structures)
        for batch in self.until_stopped(loader):
            scores.add(self._scored(batch), batch["label"], batch["key"], batch["case"], by_case=whole_cases)
        return scores

    @torch.no_grad()
    def predict(self, batch: Batch) -> torch.Tensor:
        """Masks (B, C, m, m), bool: sigmoid(logit) > 0.5."""
        return self._scored(batch) > 0

    def _scored(self, batch: Batch) -> torch.Tensor:
        """Logits of a batch that is not trained on, on the CPU."""
        return self._scoring.work(len(batch["image"]), lambda size: self._logits(batch, cached=True, size=size).cpu())

    def _logits(self, batch: Batch, cached: bool, size: int = 0) -> torch.Tensor:
        return self._forward.logits(batch["image"], batch["key"] if cached else None, size)

    def until_stopped(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; a fault among them, and the order to stop, are raised."""
        asked = time.monotonic()
        batches = iter(loader)  # where loader processes begin
        while (batch := next(batches, None)) is not None:
            self.waited_s += time.monotonic() - asked
            if self._stop():
                raise Aborted
            if isinstance(batch, FedfmsError):
                raise batch
            yield batch
            asked = time.monotonic()


def _parts(batch: Batch, size: int) -> Iterator[tuple[Batch, float]]:
    """Parts of a batch, `size` slices each, and the share of its slices that each has."""
    slices = len(batch["image"])
    for start in range(0, slices, size):
        part = {name: values[start : start + size] for name, values in batch.items()}
        yield part, len(part["image"]) / slices
