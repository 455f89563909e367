"""FedSCA (ICML 2025): SGCA over the lowest adapters; all other trained tensors are private."""

from collections.abc import Collection

from fedfms.errors import StudyError
from fedfms.methods.base import Layout
from fedfms.methods.options import NonNegative, checked
from fedfms.methods.sgca import SGCA
from fedfms.methods.similarity import Kind, Scale

_DECODER = frozenset({"decoder", "head"})


def lowest_adapters(layout: Layout, layers: int, where: str) -> frozenset[str]:
    """Names of the parameters of A_1..A_L, the L adapters nearest the input.

    Raises:
        StudyError: L is below 1, or the model has fewer adapters.
    """
    if not 1 <= layers <= len(layout.adapters):
        raise StudyError(f"layers is {layers}", where=where, do=f"from 1 to {len(layout.adapters)} with this backbone")
    return frozenset(name for adapter in layout.adapters[:layers] for name in adapter)


class FedSCA(SGCA):
    """SGCA over A_1..A_L; the other adapters, the decoder and its head are private.

    Args:
        layers: L.
        share_decoder: share the decoder and its head as well.
        alpha, beta, similarity, scale: see `SGCA`.
    """

    name = "fedsca"
    paper = "FedSCA, ICML 2025"

    @checked
    def __init__(
        self, *, layers: int = 1, share_decoder: bool = False, alpha: NonNegative = 1.0, beta: NonNegative = 0.01,
        similarity: Kind = "l2", scale: Scale = "mean",
    ) -> None:  # fmt: skip
        super().__init__(alpha=alpha, beta=beta, similarity=similarity, scale=scale)
        self._layers, self._share_decoder = layers, share_decoder

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """A_1..A_L, and the decoder if it is shared."""
        decoder = {name for name in trained if layout.roles.get(name) in _DECODER and self._share_decoder}
        return lowest_adapters(layout, self._layers, f"method {self.name}") | decoder
