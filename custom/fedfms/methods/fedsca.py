"""FedSCA (ICML 2025): the lowest adapters are sent and mixed for each site (SGCA); the rest is the site's own."""

from __future__ import annotations

from collections.abc import Collection

from fedfms.errors import StudyError
from fedfms.methods.base import Layout
from fedfms.methods.sgca import SGCA

_DECODER = frozenset({"decoder", "head"})


def lowest_adapters(layout: Layout, layers: int, where: str) -> frozenset[str]:
    """Names of A_1..A_L, the L adapters nearest the input.

    Raises:
        StudyError: L is below 1, or the model has fewer adapters.
    """
    if not 1 <= layers <= len(layout.adapters):
        raise StudyError(f"layers is {layers}", where=where, do=f"from 1 to {len(layout.adapters)} with this backbone")
    return frozenset(name for adapter in layout.adapters[:layers] for name in adapter)


class FedSCA(SGCA):
    """SGCA over A_1..A_L; the other adapters and the decoder with its head stay at the site.

    Args:
        layers: L.
        share_decoder: send the decoder and its head as well.
        alpha, beta, similarity, scale: see `SGCA`.
    """

    name = "fedsca"
    paper = "FedSCA, ICML 2025"

    def __init__(
        self, *, layers: int = 1, share_decoder: bool = False, alpha: float = 1.0, beta: float = 0.01,
        similarity: str = "l2", scale: str = "mean",
    ) -> None:  # fmt: skip
        super().__init__(alpha=alpha, beta=beta, similarity=similarity, scale=scale)
        self._layers, self._share_decoder = layers, share_decoder

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """A_1..A_L, and the decoder if it is shared."""
        decoder = {name for name in trained if layout.roles.get(name) in _DECODER and self._share_decoder}
        return lowest_adapters(layout, self._layers, f"method {self.name}") | decoder
