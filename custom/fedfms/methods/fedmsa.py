"""FedMSA (FedFMS, MICCAI 2024): adapters and mask decoder of the Medical SAM Adapter, averaged by sample count."""

from fedfms.methods.fedavg import FedAvg


class FedMSA(FedAvg):
    """Trains and shares the adapters, the decoder and its head; the image encoder is frozen."""

    name = "fedmsa"
    paper = "FedFMS, MICCAI 2024"
    adapters = True
    trained_roles = frozenset({"adapter", "decoder", "head"})
