"""FedSAM (FedFMS, MICCAI 2024): all of SAM's image encoder and mask decoder, averaged by sample count."""

from fedfms.methods.fedavg import FedAvg


class FedSAM(FedAvg):
    """Trains and shares encoder, decoder and head; the model has no adapters."""

    name = "fedsam"
    paper = "FedFMS, MICCAI 2024"
    adapters = False
    trained_roles = frozenset({"encoder", "decoder", "head"})
