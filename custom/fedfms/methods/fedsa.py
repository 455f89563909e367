"""FedSA (FedSA-LoRA, ICLR 2025) on adapters: down-projections are shared, up-projections are private."""

from collections.abc import Collection

from fedfms.methods.base import Layout
from fedfms.methods.fedmsa import FedMSA

_PRIVATE = "up"  # the module of an adapter next to "down": see `fedfms.models.adapters.Adapter`


class FedSA(FedMSA):
    """FedMSA that shares only the down-projections of the adapters; decoder and head are shared."""

    name = "fedsa"
    paper = "FedSA-LoRA, ICLR 2025"
    personal = True

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """All trained tensors except the up-projections, weight and bias."""
        return frozenset(trained) - {
            name for adapter in layout.adapters for name in adapter if name.split(".")[-2] == _PRIVATE
        }
