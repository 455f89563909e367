"""FedALA (Zhang et al., AAAI 2023): a site mixes the global model into its own, element by element, before training."""

from __future__ import annotations

import math
import statistics

import torch

from fedfms.errors import StudyError, TrainingError
from fedfms.methods.base import Layout, LocalInit, Partition, SiteContext, Tensors
from fedfms.methods.fedmsa import FedMSA

PASSES = "passes"  # in a site's memory: how often w's learning has gone over the site's sample so far
_PURPOSE = "ala"
_PER_BLOCK = 2  # adapters of a block, next to each other in the layout


class FedALA(FedMSA):
    """Sends and averages what FedMSA does; from its second round on a site starts from a mixture of its own making.

    Per element of the upper layers (decoder, head, adapters of the last blocks):
    theta = theta_local + (theta_global - theta_local) * w, with w in 0..1 learnt on the site's training data. The
    layers below take the global value. w stays at the site.

    Args:
        layers: the last blocks whose adapters are mixed, beside decoder and head; 0 or more.
        share: of the training slices that w is learnt on, 0 < share <= 1.
        eta: w's learning rate, above 0.
        epochs: passes over that share at most when w is learnt for the first time; later there is one.
        window: the last passes whose losses tell that w has settled, 2 or more.
        spread: the standard deviation of these losses below which it has, above 0.

    Raises:
        StudyError: an option is out of its range.
    """

    name = "fedala"
    paper = "FedALA, AAAI 2023"
    personal = True

    def __init__(
        self, *, layers: int = 2, share: float = 0.8, eta: float = 1.0, epochs: int = 50, window: int = 10,
        spread: float = 0.1,
    ) -> None:  # fmt: skip
        ranges = {
            "layers": (layers, layers >= 0, "0 or more"),
            "share": (share, 0 < share <= 1, "above 0, and 1 at most"),
            "eta": (eta, 0 < eta < math.inf, "above 0"),
            "epochs": (epochs, epochs >= 1, "1 or more"),
            "window": (window, window >= 2, "2 or more"),
            "spread": (spread, 0 < spread < math.inf, "above 0"),
        }
        for option, (value, right, do) in ranges.items():
            if not right:
                raise StudyError(f"{option} is {value}", where=f"method {self.name}", do=do)
        self._layers, self._share, self._eta = layers, share, eta
        self._epochs, self._window, self._spread = epochs, window, spread
        self._mixed: tuple[str, ...] = ()

    def partition(self, layout: Layout) -> Partition:
        """As FedMSA's; what is mixed follows from the layout.

        Raises:
            StudyError: the model has fewer blocks than `layers`.
        """
        blocks = len(layout.adapters) // _PER_BLOCK
        if self._layers > blocks:
            raise StudyError(f"layers is {self._layers}", where=f"method {self.name}", do=f"{blocks} blocks at most")
        first = len(layout.adapters) - _PER_BLOCK * self._layers
        upper = {name for adapter in layout.adapters[first:] for name in adapter}
        upper |= {name for name, role in layout.roles.items() if role in {"decoder", "head"}}
        partition = super().partition(layout)
        self._mixed = tuple(name for name in partition.shared if name in upper)
        return partition

    def receive(self, site: SiteContext, received: Tensors) -> LocalInit:
        """The global model in the site's first round; later the mixture, with w learnt anew from where it was.

        Raises:
            TrainingError: the loss is not finite.
        """
        if not site.memory:
            return LocalInit({**site.own, **received}, {PASSES: torch.tensor(0)})
        w, passes = self._learn(site, received)
        return LocalInit(_mixture(site.own, received, w), {**w, PASSES: site.memory[PASSES] + passes})

    def personal_model(self, own: Tensors, memory: Tensors, received: Tensors) -> Tensors:
        """The mixture by w as the site last learnt it; the global model where it has learnt none yet."""
        return _mixture(own, received, {name: memory[name] for name in self._mixed if name in memory})

    def _learn(self, site: SiteContext, received: Tensors) -> tuple[Tensors, int]:
        """w of each mixed tensor, and the passes that it took."""
        first = int(site.memory[PASSES]) == 0
        w = {name: site.memory.get(name, torch.ones_like(received[name])) for name in self._mixed}
        losses: list[float] = []
        for _ in range(self._epochs if first else 1):
            losses.append(self._pass(site, received, w))
            if len(losses) >= self._window and statistics.pstdev(losses[-self._window :]) < self._spread:
                break
        return w, len(losses)

    def _pass(self, site: SiteContext, received: Tensors, w: Tensors) -> float:
        """Move `w` by one pass over the sample; the mean loss of its batches."""
        losses = []
        # The same purpose in every pass of a round, thus the same sample.
        for batch in site.learner.batches(self._share, _PURPOSE):
            loss, gradients = site.learner.gradients(_mixture(site.own, received, w), self._mixed, batch)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of a mixture became {loss}", do="lower train.lr, or look at the images")
            for name, gradient in gradients.items():
                w[name] = (w[name] - self._eta * gradient * (received[name] - site.own[name])).clamp_(0, 1)
            losses.append(loss)
        return statistics.fmean(losses)


def _mixture(own: Tensors, received: Tensors, w: Tensors) -> Tensors:
    """own + (received - own) * w where there is a w, else the received tensor.

    `lerp` is that sum from whichever end is nearer: w = 1 is the global value and w = 0 the site's own, bit for bit.
    """
    return {**own, **received, **{name: torch.lerp(own[name], received[name], each) for name, each in w.items()}}
