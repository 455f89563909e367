"""FedU-Net: the U-Net with batch normalisation, averaged by sample count, its statistics too (FedFMS's baseline)."""

from __future__ import annotations

from fedfms.methods.fedavg import FedAvg


class FedUNet(FedAvg):
    """Trains and shares the whole network from random weights, running statistics included."""

    name = "fedunet"
    paper = "U-Net (MICCAI 2015) as FedFMS's baseline"
    family = "unet"
    trained_roles = frozenset({"encoder", "decoder", "head"})
