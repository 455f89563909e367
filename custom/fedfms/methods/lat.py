"""LAT, FedSCA's ablation (ICML 2025): the lowest adapters are sent and averaged; the rest is the site's own."""

from __future__ import annotations

from collections.abc import Collection

from fedfms.methods.base import Layout
from fedfms.methods.fedavg import FedAvg
from fedfms.methods.fedmsa import ADAPTED
from fedfms.methods.fedsca import lowest_adapters


class LAT(FedAvg):
    """Sample-weighted mean of A_1..A_L; no mixtures and no penalty.

    Args:
        layers: L.
    """

    name = "lat"
    paper = "FedSCA's ablation, ICML 2025"
    adapters = True
    personal = True
    trained_roles = ADAPTED

    def __init__(self, *, layers: int = 1) -> None:
        self._layers = layers

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """A_1..A_L."""
        return lowest_adapters(layout, self._layers, f"method {self.name}")
