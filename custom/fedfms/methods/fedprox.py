"""FedProx (Li et al., MLSys 2020): FedAvg with a proximal term that pulls each site towards the received model."""

import torch

from fedfms.methods.base import Tensors
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.fedsam import FedSAM
from fedfms.methods.options import NonNegative, checked
from fedfms.models.base import SegmentationModel


class FedProx(FedMSA):
    """Adds mu/2 ||S - S_global||^2 to the loss of each step.

    Args:
        mu: weight of the proximal term; with 0 this is FedMSA (or FedSAM), to the bit.
        full: train and share all of SAM, without adapters, as FedSAM does ("-F").
    """

    name = "fedprox"
    paper = "FedProx, MLSys 2020"

    @checked
    def __init__(self, *, mu: NonNegative = 0.01, full: bool = False) -> None:
        self._mu = mu
        if full:
            self.adapters, self.trained_roles = FedSAM.adapters, FedSAM.trained_roles

    def penalty(self, model: SegmentationModel, received: Tensors) -> torch.Tensor | None:
        """The proximal term of Eq. 2, over the received parameters."""
        if self._mu == 0:
            return None
        own = dict(model.named_parameters())
        squares = [(own[name] - tensor).square().sum() for name, tensor in received.items() if name in own]
        return self._mu / 2 * torch.stack(squares).sum()
