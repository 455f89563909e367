"""What a site receives and sends: whole tensors, or a compressed download and upload with error feedback.

All that compression needs between rounds is in the site's stored states, so that a repeated round sends the same bits.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from fedfms.compression import Codec, Download, Payload, digest, read_download, upload
from fedfms.errors import UpdateError
from fedfms.methods import Tensors
from fedfms.training.build import BuiltModel
from fedfms.training.state import SiteState, StateStore


class Received(NamedTuple):
    """A round's tensors. `held`: all shared tensors that the site then holds, which its differences refer to."""

    tensors: Tensors
    held: Tensors


class Sent(NamedTuple):
    """A round's payload, the tensors that the server decodes from it, and the state to store."""

    payload: Payload
    tensors: Tensors
    state: SiteState


@dataclass(frozen=True)
class Exchange:
    """Args: `codec`: None without compression; `initial`: the trained tensors before round 0."""

    codec: Codec | None
    built: BuiltModel
    initial: Tensors
    store: StateStore

    def held_digest(self) -> str:
        """Digest of the shared tensors that the site holds; empty without compression.

        The server sends differences only to a site that holds what it expects.

        Raises:
            TrainingError: a stored state is damaged.
        """
        return "" if self.codec is None else next(reversed(self._held()))

    def decode(self, content: Tensors | Download) -> Received:
        """The tensors of what the server sent.

        Raises:
            CheckpointError, UpdateError: it belongs to another model, or its base is not held here.
            TrainingError: a stored state is damaged.
        """
        if not isinstance(content, Download):
            self.built.check_received(content)
            return Received(content, content)
        assert self.codec is not None
        held = self._held() if content.base else {"": {}}
        if content.base not in held:
            what = "the server sent differences to a model that the site does not hold"
            raise UpdateError(what, do="the site gets the whole model with its next request")
        self.built.check_received(content.arrays)
        tensors = read_download(content, held[content.base], self.built.own(), self.codec)
        return Received(tensors, {**held[content.base], **tensors})

    def encode(self, outgoing: Tensors, received: Received, state: SiteState, before: SiteState | None) -> Sent:
        """The payload of `outgoing`, and `state` with what compression needs in the next round.

        Raises:
            UpdateError: a value is not finite.
        """
        if self.codec is None:
            return Sent(Payload({name: tensor.numpy() for name, tensor in outgoing.items()}), outgoing, state)
        sent = upload(outgoing, received.tensors, {} if before is None else before.residual, self.codec)
        base = digest(received.held)
        state = replace(state, residual=sent.residual, held=received.held, held_digest=base)
        return Sent(Payload(sent.arrays, base), sent.tensors, state)

    def _held(self) -> dict[str, Tensors]:
        """By digest, the newest last."""
        held = self.store.held()
        if not held:
            shared = {name: self.initial[name] for name in self.built.partition.shared}
            held = {digest(shared): shared}
        return held
