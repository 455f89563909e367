"""FedProx (Li et al., MLSys 2020): FedAvg, with a pull at each site towards the model that it received."""

from __future__ import annotations

import math

import torch

from fedfms.errors import StudyError
from fedfms.methods.base import Tensors
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.fedsam import FedSAM
from fedfms.models.base import SegmentationModel


class FedProx(FedMSA):
    """Adds mu/2 ||S - S_global||^2 to the loss of each step.

    Args:
        mu: weight of the proximal term, >= 0; at 0 this is FedMSA (FedSAM), bit for bit.
        full: train and share all of SAM, without adapters, as FedSAM does ("-F").

    Raises:
        StudyError: mu is not a number from 0 on.
    """

    name = "fedprox"
    paper = "FedProx, MLSys 2020"

    def __init__(self, *, mu: float = 0.01, full: bool = False) -> None:
        if not (math.isfinite(mu) and mu >= 0):
            raise StudyError(f"mu is {mu}", where=f"method {self.name}", do="a number from 0 on")
        self._mu = mu
        if full:
            self.adapters, self.trained_roles = FedSAM.adapters, FedSAM.trained_roles

    def penalty(self, model: SegmentationModel, received: Tensors) -> torch.Tensor | None:
        """Eq. 2's proximal term, over the parameters among the received tensors."""
        if self._mu == 0:
            return None
        own = dict(model.named_parameters())
        apart = [(own[name] - tensor).square().sum() for name, tensor in received.items() if name in own]
        return self._mu / 2 * torch.stack(apart).sum()
