"""FedMSA (FedFMS, MICCAI 2024): adapters and mask decoder of the Medical SAM Adapter, averaged by sample count."""

from __future__ import annotations

from fedfms.methods.fedavg import FedAvg

ADAPTED = frozenset({"adapter", "decoder", "head"})


class FedMSA(FedAvg):
    """Trains and shares the adapters and the decoder with its head; the image encoder stays frozen."""

    name = "fedmsa"
    paper = "FedFMS, MICCAI 2024"
    adapters = True
    trained_roles = ADAPTED
