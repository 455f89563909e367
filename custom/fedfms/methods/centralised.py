"""Centralised training: the data of all sites in one process, the upper yardstick of a federation.

The same model, trainer, schedule and splits as the federated twin; only for data that may lie in one place.
"""

from __future__ import annotations

from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.fedsam import FedSAM
from fedfms.methods.fedunet import FedUNet


class Msa(FedMSA):
    """Adapters and decoder, trained on the pooled data: FedMSA's twin."""

    name = "msa"
    centralised = True


class Sam(FedSAM):
    """All of SAM's encoder and decoder, trained on the pooled data: FedSAM's twin."""

    name = "sam"
    centralised = True


class UNet(FedUNet):
    """The U-Net, trained on the pooled data: FedU-Net's twin."""

    name = "unet"
    centralised = True
