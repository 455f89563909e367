"""FedDBE (Zhang et al., NeurIPS 2023): what is special to a site's embeddings goes into a private shift of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from fedfms.errors import StudyError, TrainingError
from fedfms.methods.base import Layout, LocalInit, ServerState, SiteContext, Tensors, Update
from fedfms.methods.fedmsa import ADAPTED, FedMSA
from fedfms.methods.optimizers import Together
from fedfms.models.base import EXTRAS, SegmentationModel
from fedfms.study import TrainSpec

SHIFT = f"{EXTRAS}shift"  # v, the domain representation bias
MEAN = f"{EXTRAS}mean"  # the global mean of the embedding; on its way up in round 0, the site's running mean
FEWEST = 5  # training slices of a site whose running mean may leave it


class EmbeddingShift(nn.Module):
    """Embedding (B, dim, h, w) -> the same + `shift` (dim, h, w); in training it follows the embedding's mean.

    `mean` (dim, h, w), a buffer, is what the running mean is held against.
    """

    mean: Tensor

    def __init__(self, shape: tuple[int, int, int], momentum: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.measuring = False  # the round that makes the global mean: no shift
        self._momentum = momentum
        self._running: Tensor | None = None  # None but in training: scoring leaves no trace in it

    def begin(self, *, measuring: bool) -> None:
        """A round's training begins: the running mean starts at zero, as in the authors' code."""
        self.measuring = measuring
        self._running = torch.zeros_like(self.mean)

    def end(self) -> None:
        """It is over; where it was for measuring, the running mean is the new `mean`."""
        if self.measuring and self._running is not None:
            self.mean.copy_(self._running.detach())
        self.measuring, self._running = False, None

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, dim, h, w) -> the same shape."""
        if self._running is not None:
            newest = embedding.mean(dim=0)
            self._running = (1 - self._momentum) * self._running.detach() + self._momentum * newest
        return embedding if self.measuring else embedding + self.shift

    def distance(self) -> Tensor:
        """mean(1/2 (running mean - global mean)^2), scalar; its gradient flows through the newest batch alone.

        Raises:
            ValueError: no training is going on.
        """
        if self._running is None:
            raise ValueError("there is a running mean in training only")
        return 0.5 * (self._running - self.mean).square().mean()


class FedDBE(FedMSA):
    """FedMSA with logits = D(embedding + v), v private, and the mean embedding held near the mean of all sites.

    Round 0 is FedMSA's but for the running mean that each site sends; their mean is fixed from then on.

    Args:
        kappa: weight of the mean regularisation, 0 or more.
        momentum: of the running mean, above 0 and 1 at most.

    Raises:
        StudyError: an option is out of its range.
    """

    name = "feddbe"
    paper = "FedDBE, NeurIPS 2023"
    personal = True
    trained_roles = ADAPTED | {"extra"}

    def __init__(self, *, kappa: float = 1.0, momentum: float = 0.1) -> None:
        if not 0 <= kappa < math.inf:
            raise StudyError(f"kappa is {kappa}", where=f"method {self.name}", do="0 or more")
        if not 0 < momentum <= 1:
            raise StudyError(f"momentum is {momentum}", where=f"method {self.name}", do="above 0, and 1 at most")
        self._kappa, self._momentum = kappa, momentum

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """All but the shift."""
        return frozenset(trained) - {SHIFT}

    def extend_model(self, model: SegmentationModel) -> None:
        """A shift of zeros, and no mean yet."""
        model.extras = EmbeddingShift(model.embedding_shape(), self._momentum)

    def receive(self, site: SiteContext, received: Tensors) -> LocalInit:
        """As every method; refuses to measure a mean that is of hardly more than one image.

        Raises:
            TrainingError: in round 0, at a site with fewer than `FEWEST` training slices.
        """
        if site.round == 0 and site.samples < FEWEST:
            what = f"the mean of {site.samples} images' embeddings would leave the site, {FEWEST} are the fewest"
            raise TrainingError(what, do="give the site more images, or leave it out of feddbe")
        return super().receive(site, received)

    def before_training(self, model: SegmentationModel, round_: int, received: Collection[str]) -> None:
        """Follow the embedding's mean; in round 0, do no more than that."""
        _shift(model).begin(measuring=round_ == 0)

    def after_training(self, model: SegmentationModel) -> None:
        """After round 0, the running mean is what the site sends."""
        _shift(model).end()

    def penalty(self, model: SegmentationModel, received: Tensors) -> Tensor | None:
        """kappa x `EmbeddingShift.distance`, from round 1 on."""
        shift = _shift(model)
        return None if shift.measuring else self._kappa * shift.distance()

    def optimizer(self, parameters: Mapping[str, nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
        """Adam, and plain SGD at the same learning rate for the shift."""
        others = {name: parameter for name, parameter in parameters.items() if name != SHIFT}
        return Together(super().optimizer(others, spec), torch.optim.SGD([parameters[SHIFT]], lr=spec.lr))

    def sent_names(self, round_: int, received: Collection[str]) -> tuple[str, ...]:
        """What was received; after round 0 without the mean, which is fixed."""
        return tuple(name for name in received if round_ == 0 or name != MEAN)

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """The weighted mean of what was sent; the global mean, once it is there, stays."""
        after = super().aggregate(updates, server)
        return replace(after, shared={**server.shared, **after.shared})


def _shift(model: SegmentationModel) -> EmbeddingShift:
    return cast(EmbeddingShift, model.extras)
