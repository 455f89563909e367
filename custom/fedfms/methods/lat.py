"""LAT (ablation of FedSCA, ICML 2025): the lowest adapters are averaged; all other trained tensors are private."""

from collections.abc import Collection

from fedfms.methods.base import Layout
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.fedsca import lowest_adapters
from fedfms.methods.options import checked


class LAT(FedMSA):
    """FedMSA that shares only A_1..A_L; no mixtures and no penalty.

    Args:
        layers: L.
    """

    name = "lat"
    paper = "FedSCA's ablation, ICML 2025"
    personal = True

    @checked
    def __init__(self, *, layers: int = 1) -> None:
        self._layers = layers

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """A_1..A_L."""
        return lowest_adapters(layout, self._layers, f"method {self.name}")
