"""FedRA (Su et al., ECCV 2024): every round each site trains the adapters of blocks that are drawn for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fedfms.errors import StudyError, UpdateError
from fedfms.methods.base import Layout, ServerState, Tensors, Update
from fedfms.methods.fedavg import weighted_mean
from fedfms.methods.fedmsa import FedMSA
from fedfms.models.base import SegmentationModel
from fedfms.rng import rng

_TRIES = 100


def draw_blocks(
    sites: Collection[str], blocks: int, fraction: float, stream: np.random.Generator
) -> dict[str, frozenset[int]]:
    """For each site a random subset of the blocks 0..blocks-1, redrawn until every block is some site's.

    A subset has round(fraction x blocks) blocks, 1 at least; with too few sites for that to cover all blocks, the
    fewest that can: ceil(blocks / sites). Where chance does not cover them in 100 draws (many blocks, just enough
    places), a shuffled deal does, which is filled up at random.
    """
    names = sorted(sites)
    count = max(1, round(fraction * blocks), -(-blocks // len(names)))
    for _ in range(_TRIES):
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
    """A site receives, trains and sends the adapters of its blocks of the round, and decoder and head.

    Args:
        fraction: of the transformer blocks that a site gets each round, 0 < fraction <= 1; at 1, by samples, FedMSA.
        skip_unallocated: leave the other blocks out of the site's forward pass in training, as the paper does; false
            keeps them in it, frozen.
        weighting: of the sites that trained a tensor, in its mean: by "samples", or "plain", all alike.

    Raises:
        StudyError: the fraction is out of its range, or the weighting unknown.
    """

    name = "fedra"
    paper = "FedRA, ECCV 2024"
    aggregates_by_mean = False
    sends_parts = True

    def __init__(
        self, *, fraction: float = 2 / 3, skip_unallocated: bool = True, weighting: str = "samples"
    ) -> None:  # fmt: skip
        if not 0 < fraction <= 1:
            raise StudyError(f"fraction is {fraction}", where=f"method {self.name}", do="above 0, and 1 at most")
        if weighting not in ("samples", "plain"):
            raise StudyError(
                f"weighting is {weighting!r}", where=f"method {self.name}", do="it must be samples or plain"
            )
        self._fraction = fraction
        self._skip = skip_unallocated
        self._plain = weighting == "plain"
        self._blocks: tuple[frozenset[str], ...] = ()  # names of each block's adapters

    def bind(self, layout: Layout) -> None:
        """Two adapters in a row are one block's."""
        pairs = zip(layout.adapters[::2], layout.adapters[1::2], strict=True)
        self._blocks = tuple(frozenset(first + second) for first, second in pairs)

    def dispatch(self, server: ServerState, sites: Sequence[str]) -> dict[str, Tensors]:
        """The global model without the adapters of the blocks that were not drawn for the site."""
        stream = rng(server.seed, "", server.round, "fedra")
        drawn = draw_blocks(sites, len(self._blocks), self._fraction, stream)
        left_out = {site: self._names(set(range(len(self._blocks))) - blocks) for site, blocks in drawn.items()}
        return {
            site: {name: tensor for name, tensor in server.shared.items() if name not in left_out[site]}
            for site in sites
        }

    def before_training(self, model: SegmentationModel, round_: int, received: Collection[str]) -> None:
        """Leave the blocks out whose adapters did not come."""
        if self._skip:
            model.skip_blocks(set(range(len(self._blocks))) - self._allocated(received))

    def after_training(self, model: SegmentationModel) -> None:
        """The whole network again."""
        if self._skip:
            model.skip_blocks(())

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """Of each tensor the mean over those who trained it, as `weighting` says; what nobody trained stays.

        Raises:
            UpdateError: no updates.
        """
        if not updates:
            raise UpdateError("no updates to combine")
        counted = [replace(u, samples=min(u.samples, 1)) for u in updates] if self._plain else updates
        shared = {}
        for name, old in server.shared.items():
            having = [replace(u, tensors={name: u.tensors[name]}) for u in counted if name in u.tensors]
            shared[name] = weighted_mean(having)[name] if having else old
        blocks = {update.site: sorted(self._allocated(update.tensors)) for update in updates}
        return replace(server, round=server.round + 1, shared=shared, notes={"blocks": dict(sorted(blocks.items()))})

    def _names(self, blocks: Collection[int]) -> frozenset[str]:
        return frozenset().union(*(self._blocks[block] for block in blocks))

    def _allocated(self, names: Collection[str]) -> set[int]:
        """The blocks whose adapters are all among the names."""
        having = frozenset(names)
        return {index for index, block in enumerate(self._blocks) if block <= having}
