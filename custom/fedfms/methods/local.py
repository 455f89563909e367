"""Local training without federation: the lower reference."""

from collections.abc import Collection

from fedfms.methods.base import Layout
from fedfms.methods.fedmsa import FedMSA


class Local(FedMSA):
    """Trains what FedMSA trains and shares no tensor; scores and counts still leave the site."""

    name = "local"
    paper = "baseline of FedFMS and FedSCA"
    personal = True

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """No tensor."""
        return frozenset()
