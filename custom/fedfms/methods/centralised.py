"""Centralised counterparts of federated methods: one process trains on the pooled data of all sites.

They are the upper reference of a federation, with its model, trainer, schedule and splits. The data must be allowed to
be in one place.
"""

from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.fedsam import FedSAM
from fedfms.methods.fedunet import FedUNet


class Msa(FedMSA):
    """The centralised counterpart of FedMSA."""

    name = "msa"
    centralised = True


class Sam(FedSAM):
    """The centralised counterpart of FedSAM."""

    name = "sam"
    centralised = True


class UNet(FedUNet):
    """The centralised counterpart of FedU-Net."""

    name = "unet"
    centralised = True
