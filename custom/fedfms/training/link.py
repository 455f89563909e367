"""A site's end of a compressed wire: what it holds of the shared tensors, and what rounding has kept from the server.

All of it is in the site's saved states, so that a round that is run again sends the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from fedfms.compression import Arrays, Codec, Download, digest, read_download, upload
from fedfms.errors import UpdateError
from fedfms.methods import Tensors
from fedfms.training.build import BuiltModel
from fedfms.training.state import SiteState, StateStore


class Received(NamedTuple):
    """A round's tensors, and all that the site then holds of the shared ones: what the next differences are to."""

    tensors: Tensors
    held: Tensors


class Coded(NamedTuple):
    """A site's message: differences; `base`: digest of all that it holds, which the differences are to a part of."""

    arrays: Arrays
    base: str


@dataclass(frozen=True)
class Link:
    """`initial`: the trained tensors that the study begins with."""

    codec: Codec
    built: BuiltModel
    initial: Tensors
    store: StateStore

    def claim(self) -> str:
        """Digest of what the site holds: what came last, or what the study begins with. The server sends differences
        to nothing else.

        Raises:
            TrainingError: a saved state is damaged.
        """
        return next(reversed(self._held()))

    def read(self, download: Download) -> Received:
        """The tensors of a server's message.

        Raises:
            CheckpointError, UpdateError: it is of another model, or changes what the site does not hold.
            TrainingError: a saved state is damaged.
        """
        held = self._held() if download.base else {"": {}}
        if download.base not in held:
            what = "the server sent changes of a model that the site does not hold"
            raise UpdateError(what, do="it gets the whole model when it next asks")
        self.built.check_received(download.arrays)
        tensors = read_download(download, held[download.base], self.built.own(), self.codec)
        return Received(tensors, {**held[download.base], **tensors})

    def write(self, packed: Tensors, received: Received, state: SiteState, before: SiteState | None) -> _Written:
        """A round's message, and the round's state with what belongs to it.

        Raises:
            UpdateError: a value is not finite.
        """
        sent = upload(packed, received.tensors, {} if before is None else before.residual, self.codec)
        coded = Coded(sent.arrays, digest(received.held))
        return _Written(
            coded, sent.tensors, replace(state, residual=sent.residual, held=received.held, holds=coded.base)
        )

    def _held(self) -> dict[str, Tensors]:
        held = self.store.held()
        if not held:
            shared = {name: self.initial[name] for name in self.built.partition.shared}
            held = {digest(shared): shared}
        return held


class _Written(NamedTuple):
    coded: Coded
    tensors: Tensors  # as the server will have them
    state: SiteState
