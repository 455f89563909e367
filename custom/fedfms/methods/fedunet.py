"""FedU-Net (FedFMS's baseline): a U-Net with batch normalisation, averaged by sample count with its statistics."""

from fedfms.methods.fedavg import FedAvg


class FedUNet(FedAvg):
    """Trains and shares the whole network from random weights, including running statistics."""

    name = "fedunet"
    paper = "U-Net (MICCAI 2015) as FedFMS's baseline"
    family = "unet"
    trained_roles = frozenset({"encoder", "decoder", "head"})
