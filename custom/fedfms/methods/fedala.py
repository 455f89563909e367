"""FedALA (Zhang et al., AAAI 2023): before training, a site mixes the global model into its own, element by element."""

import math
import statistics
from typing import Annotated

import torch
from pydantic import Field

from fedfms.errors import StudyError, TrainingError
from fedfms.methods.base import Layout, LocalInit, Partition, SiteContext, Tensors
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.options import Fraction, Positive, checked

PASSES = "passes"  # stored at the site: number of passes in which w was learnt so far
_PURPOSE = "ala"
_ADAPTERS_PER_BLOCK = 2  # adjacent in the layout


class FedALA(FedMSA):
    """FedMSA whose sites, from their second round on, start from their own mixture of local and global model.

    For each element of the upper layers (decoder, head, adapters of the last blocks):
    theta = theta_local + (theta_global - theta_local) * w, with w in 0..1 learnt on the site's training data. Lower
    layers take the global value. w stays at the site.

    Args:
        layers: number of last blocks whose adapters are mixed, in addition to decoder and head.
        share: share of the training slices on which w is learnt.
        eta: learning rate of w.
        epochs: maximum number of passes over that share when w is first learnt; later it is one.
        window: w has converged when the losses of the last `window` passes ...
        spread: ... have a standard deviation below `spread`.
    """

    name = "fedala"
    paper = "FedALA, AAAI 2023"
    personal = True

    @checked
    def __init__(
        self, *, layers: Annotated[int, Field(ge=0)] = 2, share: Fraction = 0.8, eta: Positive = 1.0,
        epochs: Annotated[int, Field(ge=1)] = 50, window: Annotated[int, Field(ge=2)] = 10, spread: Positive = 0.1,
    ) -> None:  # fmt: skip
        self._layers, self._share, self._eta = layers, share, eta
        self._epochs, self._window, self._spread = epochs, window, spread
        self._mixed: tuple[str, ...] = ()

    def partition(self, layout: Layout) -> Partition:
        """FedMSA's partition; also selects the tensors to mix.

        Raises:
            StudyError: the model has fewer blocks than `layers`.
        """
        blocks = len(layout.adapters) // _ADAPTERS_PER_BLOCK
        if self._layers > blocks:
            raise StudyError(f"layers is {self._layers}", where=f"method {self.name}", do=f"{blocks} blocks at most")
        first = len(layout.adapters) - _ADAPTERS_PER_BLOCK * self._layers
        upper = {name for adapter in layout.adapters[first:] for name in adapter}
        upper |= {name for name, role in layout.roles.items() if role in {"decoder", "head"}}
        partition = super().partition(layout)
        self._mixed = tuple(name for name in partition.shared if name in upper)
        return partition

    def on_receive(self, site: SiteContext, received: Tensors) -> LocalInit:
        """The global model in the site's first round; later the mixture, after updating w from its previous value.

        Raises:
            TrainingError: the loss is not finite.
        """
        if not site.stored:
            return LocalInit({**site.own, **received}, {PASSES: torch.tensor(0)})
        w, passes = self._learn(site, received)
        return LocalInit(_mixture(site.own, received, w), {**w, PASSES: site.stored[PASSES] + passes})

    def personal_model(self, own: Tensors, stored: Tensors, received: Tensors) -> Tensors:
        """The mixture with the site's last w; the global model if it has none yet."""
        return _mixture(own, received, {name: stored[name] for name in self._mixed if name in stored})

    def _learn(self, site: SiteContext, received: Tensors) -> tuple[Tensors, int]:
        """Returns w of each mixed tensor and the number of passes."""
        first = int(site.stored[PASSES]) == 0
        w = {name: site.stored.get(name, torch.ones_like(received[name])) for name in self._mixed}
        losses: list[float] = []
        for _ in range(self._epochs if first else 1):
            losses.append(self._pass(site, received, w))
            if len(losses) >= self._window and statistics.pstdev(losses[-self._window :]) < self._spread:
                break
        return w, len(losses)

    def _pass(self, site: SiteContext, received: Tensors, w: Tensors) -> float:
        """Update `w` in one pass over the sample; returns the mean loss of its batches."""
        losses = []
        # All passes of a round name the same purpose, so they see the same sample.
        for batch in site.local_data.batches(self._share, _PURPOSE):
            loss, gradients = site.local_data.gradients(_mixture(site.own, received, w), self._mixed, batch)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of a mixture became {loss}", do="lower train.lr, or check the images")
            for name, gradient in gradients.items():
                w[name] = (w[name] - self._eta * gradient * (received[name] - site.own[name])).clamp_(0, 1)
            losses.append(loss)
        return statistics.fmean(losses)


def _mixture(own: Tensors, received: Tensors, w: Tensors) -> Tensors:
    """own + (received - own) * w for tensors that have a w; else the received tensor.

    `lerp` computes it from the nearer end: w = 1 gives the global value and w = 0 the local one, to the bit.
    """
    return {**own, **received, **{name: torch.lerp(own[name], received[name], each) for name, each in w.items()}}
