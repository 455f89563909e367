"""FedDBE (Zhang et al., NeurIPS 2023): a private shift of the embeddings absorbs what is specific to a site."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from fedfms.errors import TrainingError
from fedfms.methods.base import Layout, LocalInit, ServerState, SiteContext, Tensors, Update
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.optimizers import CombinedOptimizer
from fedfms.methods.options import Fraction, NonNegative, checked
from fedfms.models.base import EXTRAS, SegmentationModel
from fedfms.study import TrainSpec

SHIFT = f"{EXTRAS}shift"  # v, the domain representation bias
MEAN = f"{EXTRAS}mean"  # the global mean of the embedding; in the updates of round 0, the site's running mean
MIN_SLICES = 5  # training slices of a site whose running mean may leave it


class EmbeddingShift(nn.Module):
    """Embedding (B, dim, h, w) -> embedding + `shift` (dim, h, w); in training it tracks the embedding's running mean.

    `mean` (dim, h, w), a buffer, is the global mean, to which the running mean is compared.
    """

    mean: Tensor

    def __init__(self, shape: tuple[int, int, int], momentum: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.measuring = False  # in round 0, which measures the global mean without a shift
        self._momentum = momentum
        self._running: Tensor | None = None  # None outside training: scoring does not change it

    def begin(self, *, measuring: bool) -> None:
        """Begin a round's training; the running mean starts at zero, as in the authors' code."""
        self.measuring = measuring
        self._running = torch.zeros_like(self.mean)

    def end(self) -> None:
        """End it; a measuring round stores the running mean as the new `mean`."""
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
        """mean(1/2 (running mean - global mean)^2), scalar; its gradient flows through the newest batch only.

        Raises:
            ValueError: called outside training.
        """
        if self._running is None:
            raise ValueError("the running mean exists in training only")
        return 0.5 * (self._running - self.mean).square().mean()


class FedDBE(FedMSA):
    """FedMSA with logits = D(embedding + v), v private, and the mean embedding kept near the mean of all sites.

    Round 0 trains like FedMSA, and each site also sends its running mean; their mean is fixed from then on.

    Args:
        kappa: weight of the mean regularisation.
        momentum: of the running mean.
    """

    name = "feddbe"
    paper = "FedDBE, NeurIPS 2023"
    personal = True
    trained_roles = FedMSA.trained_roles | {"extra"}

    @checked
    def __init__(self, *, kappa: NonNegative = 1.0, momentum: Fraction = 0.1) -> None:
        self._kappa, self._momentum = kappa, momentum

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """All trained tensors except the shift."""
        return frozenset(trained) - {SHIFT}

    def extend_model(self, model: SegmentationModel) -> None:
        """Add a zero shift and a zero mean."""
        model.extras = EmbeddingShift(model.embedding_shape(), self._momentum)

    def on_receive(self, site: SiteContext, received: Tensors) -> LocalInit:
        """See `Method.on_receive`.

        Raises:
            TrainingError: in round 0, at a site with fewer than `MIN_SLICES` training slices: its running mean would
                reveal single images.
        """
        if site.round == 0 and site.samples < MIN_SLICES:
            what = f"the site would send the mean embedding of {site.samples} images, the minimum is {MIN_SLICES}"
            raise TrainingError(what, do="give the site more images, or exclude it from feddbe")
        return super().on_receive(site, received)

    def before_training(self, model: SegmentationModel, round_: int, received: Collection[str]) -> None:
        """Start tracking the embedding's mean; round 0 only measures."""
        _shift(model).begin(measuring=round_ == 0)

    def after_training(self, model: SegmentationModel) -> None:
        """Stop tracking; after round 0 the running mean is what the site sends."""
        _shift(model).end()

    def penalty(self, model: SegmentationModel, received: Tensors) -> Tensor | None:
        """kappa x `EmbeddingShift.distance`, from round 1 on."""
        shift = _shift(model)
        return None if shift.measuring else self._kappa * shift.distance()

    def optimizer(self, parameters: Mapping[str, nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
        """Adam, and plain SGD at the same learning rate for the shift."""
        others = {name: parameter for name, parameter in parameters.items() if name != SHIFT}
        return CombinedOptimizer(super().optimizer(others, spec), torch.optim.SGD([parameters[SHIFT]], lr=spec.lr))

    def sent_names(self, round_: int, received: Collection[str]) -> tuple[str, ...]:
        """The received names; after round 0 without the mean, which is fixed."""
        return tuple(name for name in received if round_ == 0 or name != MEAN)

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """The weighted mean of what was sent; after round 0 the global mean is unchanged."""
        after = super().aggregate(updates, server)
        return replace(after, shared={**server.shared, **after.shared})


def _shift(model: SegmentationModel) -> EmbeddingShift:
    return cast(EmbeddingShift, model.extras)
