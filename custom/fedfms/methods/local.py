"""Local training: every site by itself, the lower yardstick of a federation."""

from __future__ import annotations

from collections.abc import Collection

from fedfms.methods.base import Layout
from fedfms.methods.fedavg import FedAvg
from fedfms.methods.fedmsa import ADAPTED


class Local(FedAvg):
    """Trains what FedMSA trains and shares nothing: no tensor leaves the site, scores and counts do."""

    name = "local"
    paper = "yardstick of FedFMS and FedSCA"
    adapters = True
    personal = True
    trained_roles = ADAPTED

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """None."""
        return frozenset()
