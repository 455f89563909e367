"""Trains and scores a model on batches, independently of sites, rounds and NVFLARE."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fedfms.errors import FedfmsError, TrainingError
from fedfms.methods import Tensors
from fedfms.methods.optimizers import ScaledOptimizer, set_learning_rate
from fedfms.study import TrainSpec
from fedfms.training.build import BuiltModel
from fedfms.training.metrics import Scores
from fedfms.training.micro_batch import MicroBatcher
from fedfms.training.precision import Forward
from fedfms.training.prefix import PrefixCache

Batch = dict[str, Any]
Stop = Callable[[], bool]
_SCALES = (2.0**16, 2.0**12, 2.0**8, 1.0)  # of a float16 loss; powers of two do not round gradients


class Aborted(Exception):
    """The run was stopped; raised between batches."""


def never() -> bool:
    """The `Stop` of a run that cannot be stopped."""
    return False


def batches(
    dataset: Dataset[Any], batch_size: int, *, workers: int = 0, shuffle: torch.Generator | None = None
) -> DataLoader[Any]:
    """Batches of `dataset`, in its order or shuffled by a generator. A `FedfmsError` takes the place of a batch."""
    return DataLoader(
        _ErrorsAsItems(dataset), batch_size=batch_size, shuffle=shuffle is not None, generator=shuffle,
        num_workers=workers, collate_fn=_collate,
    )  # fmt: skip


class _ErrorsAsItems(Dataset[Any]):
    """Returns an error as an item: torch would turn one raised in a loader process into a traceback with paths."""

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
    error = next((item for item in items if isinstance(item, FedfmsError)), None)
    return default_collate(items) if error is None else error


class Trainer:
    """Trains and scores a built model on batches {"image": (B,3,H,W), "label": (B,C,m,m), "key": [str], "case": [str]}.

    "view": [str] besides, where it identifies the images' contents, so that prefix outputs may be cached.

    With `built.micro_batch`, a step splits its batch into micro-batches and sums their gradients, weighted by their
    share of the slices. That gives the same numbers, as the losses of `fedfms.methods.losses` are means over slices.
    A model that depends on the whole batch (it trains in training mode, or its buffers change with each batch) is not
    split in training. If memory runs out, the batch is repeated in smaller micro-batches, in training and in scoring
    (`fedfms.training.micro_batch`).

    Raises:
        TrainingError: the model's device does not support the study's precision.
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
        self._forward = Forward(built.model, spec.precision, cache, cpu_tuning=built.cpu_tuning)
        self._forward.store_frozen(built.partition.trained)
        self._device = self._forward.device
        whole = bool(built.model.train_mode or built.model.moving_buffers())
        self._training = MicroBatcher(0 if whole else built.micro_batch, whole=whole)
        self._scoring = MicroBatcher(built.micro_batch)
        self.waited_s = 0.0  # total time spent waiting for batches

    @property
    def max_slices(self) -> int:
        """Slices per micro-batch that are known to fit in memory; 0 = memory has not run out."""
        return self._training.max_slices

    @max_slices.setter
    def max_slices(self, slices: int) -> None:
        self._training.max_slices = slices

    def optimizer(self, round_: int, state: dict[str, Any] | None = None) -> torch.optim.Optimizer:
        """The method's optimizer of the trained parameters, with an earlier round's state and this round's rate."""
        optimizer = self._built.method.optimizer(self._built.parameters(), self._spec)
        if self._spec.precision == "float16":
            optimizer = ScaledOptimizer(optimizer, torch.amp.GradScaler(self._device.type))
        if state is not None:
            optimizer.load_state_dict(state)
        set_learning_rate(optimizer, self._built.method.learning_rate(self._spec, round_ / self._spec.rounds))
        return optimizer

    def learning_rates(self, round_: int, steps: int) -> Iterator[float]:
        """The learning rate of each of a round's `steps`: the method's, times a linear warm-up over the first steps."""
        spec = self._spec
        for step in range(steps):
            done = round_ + step / steps if spec.lr_by == "step" else round_
            warmup = min(1.0, (round_ * steps + step + 1) / max(spec.warmup_steps, 1))
            yield warmup * self._built.method.learning_rate(spec, done / spec.rounds)

    def epoch(
        self,
        loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        received: Tensors,
        rates: Iterator[float] | None = None,
    ) -> float:
        """Train on the batches once; returns the mean loss per slice.

        Args:
            received: the server's tensors, for methods whose loss refers to them.
            rates: the learning rate of each step; None: the optimizer's.

        Raises:
            TrainingError: the loss is not finite.
            Aborted: the run was stopped.
        """
        model = self._built.model
        received = {name: tensor.to(self._device) for name, tensor in received.items()}
        total, count = 0.0, 0
        model.train(model.train_mode)
        for batch in self.until_stopped(loader):
            slices = len(batch["image"])
            value = self._training.run(slices, partial(self._backward, batch, optimizer, received))
            if rates is not None:
                set_learning_rate(optimizer, next(rates))
            self._clip_gradients(optimizer)
            optimizer.step()  # not retried: a partial step cannot be undone, but the round can be repeated from disk
            total, count = total + value * slices, count + slices
        model.eval()
        return total / max(count, 1)

    def _clip_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self._spec.clip_norm is not None:
            if isinstance(optimizer, ScaledOptimizer):
                optimizer.unscale()
            torch.nn.utils.clip_grad_norm_(self._built.parameters().values(), self._spec.clip_norm)

    def _backward(self, batch: Batch, optimizer: torch.optim.Optimizer, received: Tensors, size: int) -> float:
        """Set the gradients to those of a batch, in micro-batches of `size` slices.

        Returns its loss, including the method's penalty, which is added once.
        """
        optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for index, (part, share) in enumerate(_micro_batches(batch, size)):
            loss = share * self._loss(self._logits(part), part["label"].to(self._device))
            penalty = None if index else self._built.method.penalty(self._built.model, received)
            if penalty is not None:
                loss = loss + penalty
            value += float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(f"the loss became {value}", do="lower train.lr, or check the site's images")
            if isinstance(optimizer, ScaledOptimizer):
                loss = optimizer.scale(loss)
            with self._forward.matmul_context():
                loss.backward()
        return value

    def gradients(self, batch: Batch, names: Collection[str]) -> tuple[float, Tensors]:
        """The model's loss on a batch, without the method's penalty, and its gradients with respect to `names`.

        In float16 the loss is scaled for the backward pass by the largest of `_SCALES` that gives finite gradients.
        """
        for scale in _SCALES if self._spec.precision == "float16" else (1.0,):
            value, sums = self._training.run(len(batch["image"]), partial(self._gradients, batch, names, scale))
            if all(total.isfinite().all() for total in sums):
                break
        return value, {name: total.div_(scale).cpu() for name, total in zip(names, sums, strict=True)}

    def _gradients(
        self, batch: Batch, names: Collection[str], scale: float, size: int
    ) -> tuple[float, list[torch.Tensor]]:
        parameters = self._built.parameters()
        chosen = [parameters[name] for name in names]
        value, sums = 0.0, [torch.zeros_like(p) for p in chosen]
        for part, share in _micro_batches(batch, size):
            loss = share * self._loss(self._logits(part), part["label"].to(self._device))
            value += float(loss.detach())
            with self._forward.matmul_context():
                grads = torch.autograd.grad(loss * scale, chosen, allow_unused=True)
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total += grad
        return value, sums

    @torch.no_grad()
    def score(self, loader: Iterable[Batch], *, whole_cases: bool = True) -> Scores:
        """Score the model on the batches; by volume too if `whole_cases`: all slices of each case are among them."""
        self._built.model.eval()  # an interrupted epoch leaves it in training mode
        scores = Scores(self._structures)
        for batch in self.until_stopped(loader):
            scores.add(self._infer(batch), batch["label"], batch["key"], batch["case"], whole_cases=whole_cases)
        return scores

    @torch.no_grad()
    def predict(self, batch: Batch) -> torch.Tensor:
        """Masks (B, C, m, m), bool: sigmoid(logit) > 0.5."""
        return self._infer(batch) > 0

    def _infer(self, batch: Batch) -> torch.Tensor:
        """Logits of a batch without training on it, on the CPU."""
        return self._scoring.run(len(batch["image"]), lambda size: self._logits(batch, size).cpu())

    def _logits(self, batch: Batch, size: int = 0) -> torch.Tensor:
        return self._forward.logits(batch["image"], batch.get("view"), size)

    def until_stopped(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; raise an error that is among them, and `Aborted` once the run is stopped."""
        asked = time.monotonic()
        batches = iter(loader)  # starts the loader processes
        while (batch := next(batches, None)) is not None:
            self.waited_s += time.monotonic() - asked
            if self._stop():
                raise Aborted
            if isinstance(batch, FedfmsError):
                raise batch
            yield batch
            asked = time.monotonic()


def _micro_batches(batch: Batch, size: int) -> Iterator[tuple[Batch, float]]:
    """Micro-batches of `size` slices, each with its share of the batch's slices."""
    slices = len(batch["image"])
    for start in range(0, slices, size):
        part = {name: values[start : start + size] for name, values in batch.items()}
        yield part, len(part["image"]) / slices
