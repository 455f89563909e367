"""What a method is: which tensors are trained, which leave the site, and how updates become the next global model.

A method is pure: dicts of tensors and numbers in, dicts out; no files and no FLARE. The same object runs in the
in-process reference loop (`fedfms.training.reference`) and in a federation (`fedfms.flare`), which is why the two
give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fedfms.errors import StudyError

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Update:
    """What one site sends after training: its shared tensors (CPU), and the number of slices that it trained on."""

    site: str
    tensors: Tensors
    samples: int


@dataclass(frozen=True)
class Combined:
    """What the server makes of a round's updates.

    `shared` is the global model; `per_site` holds a site's own mixture where the method gives each its own;
    `state` is what the server must remember for the next round.
    """

    shared: Tensors
    per_site: Mapping[str, Tensors] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Partition:
    """Names of a model's parameters by what becomes of them; each tuple in the model's own order.

    shared + private = trained; trained + frozen = all.
    """

    shared: tuple[str, ...]
    private: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def trained(self) -> frozenset[str]:
        """Names of all tensors that a site trains."""
        return frozenset(self.shared) | frozenset(self.private)


class Method:
    """Base of all methods: trains by roles, shares all that it trains, keeps nothing private.

    A new method is a subclass in a file of its own and one line in the registry.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    adapters: ClassVar[bool]  # the model carries adapters (MSA) or none (SAM)
    trained_roles: ClassVar[frozenset[str]]

    def __init__(self, **options: Any) -> None:
        if options:
            raise StudyError(f"unknown options {sorted(options)}", where=f"method {self.name}", do="it takes none")

    def partition(self, roles: Mapping[str, str]) -> Partition:
        """Split a model's parameters, given as name -> role, into shared, private and frozen ones."""
        trained = [name for name, role in roles.items() if role in self.trained_roles]
        shared = [name for name in trained if self.is_shared(name)]
        return Partition(
            shared=tuple(shared),
            private=tuple(name for name in trained if not self.is_shared(name)),
            frozen=tuple(name for name, role in roles.items() if role not in self.trained_roles),
        )

    def is_shared(self, name: str) -> bool:
        """Whether the trained tensor `name` leaves the site."""
        return True

    def unpack(self, received: Tensors, private: Tensors) -> Tensors:
        """The trained tensors with which a site starts a round: what it received, and its own private ones."""
        return {**private, **received}

    def penalty(self, trained: Mapping[str, torch.Tensor], received: Tensors) -> torch.Tensor | None:
        """What is added to the loss of each step (scalar tensor), or None."""
        return None

    def pack(self, trained: Tensors, partition: Partition) -> Tensors:
        """What leaves the site after training: the shared tensors."""
        return {name: trained[name] for name in partition.shared}

    def combine(self, updates: Sequence[Update], state: Mapping[str, Any]) -> Combined:
        """The next global model from this round's accepted updates, whatever their order."""
        raise NotImplementedError
