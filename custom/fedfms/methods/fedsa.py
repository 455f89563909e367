"""FedSA (FedSA-LoRA, ICLR 2025), on adapters: the down-projections are shared, the up-projections stay at the site."""

from __future__ import annotations

from collections.abc import Collection

from fedfms.methods.base import Layout
from fedfms.methods.fedmsa import FedMSA

_PRIVATE = "up"  # module of an adapter, beside "down": see `fedfms.models.adapters.Adapter`


class FedSA(FedMSA):
    """Trains what FedMSA trains; of the adapters it shares the down-projections, and the decoder and head whole."""

    name = "fedsa"
    paper = "FedSA-LoRA, ICLR 2025"
    personal = True

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """All that is trained but the up-projections, weight and bias."""
        return frozenset(trained) - {
            name for adapter in layout.adapters for name in adapter if name.split(".")[-2] == _PRIVATE
        }
