"""FedRA (Su et al., ECCV 2024): in every round each site trains the adapters of a random subset of blocks."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from fedfms.errors import UpdateError
from fedfms.methods.base import Layout, ServerState, Tensors, Update
from fedfms.methods.fedavg import weighted_mean
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.options import Fraction, checked
from fedfms.models.base import SegmentationModel
from fedfms.rng import rng

_MAX_DRAWS = 100


def draw_blocks(
    sites: Collection[str], blocks: int, fraction: float, stream: np.random.Generator
) -> dict[str, frozenset[int]]:
    """A random subset of the blocks 0..blocks-1 for each site; every block belongs to at least one site.

    A subset has round(fraction x blocks) blocks, but at least one, and at least ceil(blocks / sites), without which
    they could not cover all blocks. Subsets are redrawn until they do. After 100 draws (many blocks, few places), the
    blocks are shuffled and dealt out, and each subset is filled at random.
    """
    names = sorted(sites)
    count = max(1, round(fraction * blocks), -(-blocks // len(names)))
    for _ in range(_MAX_DRAWS):
        drawn = {name: frozenset(stream.choice(blocks, count, replace=False).tolist()) for name in names}
        if len(frozenset().union(*drawn.values())) == blocks:
            return drawn
    shuffled = stream.permutation(blocks)
    dealt = {}
    for index, name in enumerate(names):
        hand = shuffled[index :: len(names)]
        more = stream.choice(np.setdiff1d(shuffled, hand), count - len(hand), replace=False)
        dealt[name] = frozenset([*hand.tolist(), *more.tolist()])
    return dealt


class FedRA(FedMSA):
    """Each site receives, trains and sends the decoder, its head, and the adapters of its blocks of the round.

    Args:
        fraction: of the transformer blocks that a site gets each round; 1 with weighting "samples" is FedMSA.
        skip_unallocated: skip the other blocks in the site's forward pass in training, as the paper does; false: they
            take part, frozen.
        weighting: of the sites that trained a tensor, in its mean: "samples" by sample count, "plain" equally.
    """

    name = "fedra"
    paper = "FedRA, ECCV 2024"
    aggregates_by_mean = False
    sends_parts = True

    @checked
    def __init__(
        self, *, fraction: Fraction = 2 / 3, skip_unallocated: bool = True,
        weighting: Literal["samples", "plain"] = "samples",
    ) -> None:  # fmt: skip
        self._fraction, self._skip, self._plain = fraction, skip_unallocated, weighting == "plain"
        self._blocks: tuple[frozenset[str], ...] = ()  # names of each block's adapters

    def bind(self, layout: Layout) -> None:
        """Group adapters by block: two adjacent ones belong to one block."""
        super().bind(layout)
        pairs = zip(layout.adapters[::2], layout.adapters[1::2], strict=True)
        self._blocks = tuple(frozenset(first + second) for first, second in pairs)

    def dispatch(self, server: ServerState, sites: Sequence[str]) -> dict[str, Tensors]:
        """The global model without the adapters of the blocks that were not drawn for the site."""
        drawn = draw_blocks(sites, len(self._blocks), self._fraction, rng(server.seed, "", server.round, "fedra"))
        sent = {}
        for site in sites:
            excluded = {name for index, names in enumerate(self._blocks) if index not in drawn[site] for name in names}
            sent[site] = {name: tensor for name, tensor in server.shared.items() if name not in excluded}
        return sent

    def before_training(self, model: SegmentationModel, round_: int, received: Collection[str]) -> None:
        """Skip the blocks whose adapters were not received."""
        if self._skip:
            model.skip_blocks(set(range(len(self._blocks))) - self._allocated(received))

    def after_training(self, model: SegmentationModel) -> None:
        """Skip no block."""
        if self._skip:
            model.skip_blocks(())

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """For each tensor, the mean over the sites that trained it (see `weighting`); others are unchanged.

        Raises:
            UpdateError: no updates.
        """
        if not updates:
            raise UpdateError("no updates to aggregate")
        counted = [replace(u, samples=min(u.samples, 1)) for u in updates] if self._plain else updates
        shared = {}
        for name, old in server.shared.items():
            having = [replace(u, tensors={name: u.tensors[name]}) for u in counted if name in u.tensors]
            shared[name] = weighted_mean(having)[name] if having else old
        blocks = {update.site: sorted(self._allocated(update.tensors)) for update in updates}
        return replace(server, round=server.round + 1, shared=shared, notes={"blocks": dict(sorted(blocks.items()))})

    def _allocated(self, names: Collection[str]) -> set[int]:
        """The blocks whose adapters are all among the names."""
        having = frozenset(names)
        return {index for index, block in enumerate(self._blocks) if block <= having}
