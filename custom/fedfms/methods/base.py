"""What a method is: what is trained, what leaves the site, what a site does on receipt, and how updates combine.

A method is pure: dicts of tensors and numbers in, dicts out; no files and no FLARE. The same object runs in the
in-process reference loop (`fedfms.federation.inprocess`) and in a federation (`fedfms.flare`), which is why the two
give the same numbers. A new method is a subclass in a file of its own, a line in the registry, a card in
`docs/methods/`; what it does not override is FedAvg over all that it trains.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch

from fedfms.methods.losses import Loss, make_loss
from fedfms.methods.schedule import SCHEDULES
from fedfms.models.base import SegmentationModel
from fedfms.study import Study, TrainSpec

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """What a method must know of a model: its tensors by role, and its adapters from input to output.

    `roles`: parameter name -> one of `fedfms.models.base.ROLES`; `adapters`: the names of A_1..A_K; `buffers`:
    state that moves in training and is no parameter (batch statistics).
    """

    roles: Mapping[str, str]
    adapters: tuple[tuple[str, ...], ...] = ()
    buffers: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: SegmentationModel) -> Layout:
        """The layout of a built model."""
        return cls(model.roles(), tuple(model.adapters_in_order()), model.moving_buffers())


@dataclass(frozen=True)
class Partition:
    """Names of a model's tensors by what becomes of them; each tuple in the model's own order.

    shared + private = trained (parameters, and buffers that move); trained + frozen = all parameters and those.
    """

    shared: tuple[str, ...]
    private: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def trained(self) -> frozenset[str]:
        """Names of all tensors that training changes."""
        return frozenset(self.shared) | frozenset(self.private)


@dataclass(frozen=True)
class Update:
    """What one site sends after training: tensors (CPU), and the number of slices that it trained on."""

    site: str
    tensors: Tensors
    samples: int


@dataclass(frozen=True)
class ServerState:
    """All that a server remembers before round `round`: enough to go on after a stop, with the same numbers.

    `shared` is the global model; `per_site` a site's own mixture where a method gives each its own; `state` is the
    method's: tensors, numbers, texts, and lists and dicts of them; `notes` is for people, as JSON: what this
    round's aggregation decided (SGCA's W).
    """

    shared: Tensors
    round: int = 0
    seed: int = 0
    per_site: Mapping[str, Tensors] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class LocalData(Protocol):
    """A site's training data, for methods that look at them before a round's training begins."""

    def batches(self, share: float, purpose: str) -> Iterable[Any]:
        """Batches of a random `share` (0..1] of the training slices; drawn anew by (seed, site, round, purpose)."""

    def gradients(self, tensors: Tensors, names: Collection[str], batch: Any) -> tuple[float, Tensors]:
        """Loss of the model with the trained `tensors` on a batch, and its gradients by the tensors in `names`."""


@dataclass(frozen=True)
class SiteContext:
    """What a site has when a round's tensors arrive.

    `own`: all its trained tensors as it last left them (as they begin, before its first round); `memory`: what the
    method asked it to keep; `samples`: slices that it trains on.
    """

    round: int
    samples: int
    own: Tensors
    memory: Tensors
    learner: LocalData


@dataclass(frozen=True)
class LocalInit:
    """The trained tensors with which a site begins a round, and what the method asks it to keep."""

    tensors: Tensors
    memory: Tensors = field(default_factory=dict)


class Method:
    """Base of all methods: trains by roles, shares all that it trains, keeps nothing private.

    The class attributes say what a method is; options are keyword arguments of `__init__`, each with a default.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    family: ClassVar[str] = "sam"  # of the backbones that it trains
    personal: ClassVar[bool] = False  # every site ends with a model of its own
    sends_parts: ClassVar[bool] = False  # a site may be sent a part of the shared tensors
    # `aggregate` takes the sample-weighted mean of whole updates: another rule may take its place (`fedfms.federation.robust`).
    aggregates_by_mean: ClassVar[bool] = False
    centralised: ClassVar[bool] = False  # the data of all sites pooled in one process: a yardstick, no federation
    # These two may hang on an option, and are then set by `__init__`.
    trained_roles: frozenset[str]
    adapters: bool = False  # the model carries adapters (MSA) or none (SAM)
    plan: Mapping[str, Any] = MappingProxyType({})  # of a network that is made to one (nnU-Net); empty: by its rules

    def bind(self, layout: Layout) -> None:
        """Remember what the method needs of the model that it works on; called once, before `partition`."""

    def partition(self, layout: Layout) -> Partition:
        """Split a model's tensors into shared, private and frozen ones."""
        trained = [name for name, role in layout.roles.items() if role in self.trained_roles]
        trained += layout.buffers
        shared = self.shared_names(trained, layout)
        return Partition(
            shared=tuple(name for name in trained if name in shared),
            private=tuple(name for name in trained if name not in shared),
            frozen=tuple(name for name in layout.roles if name not in frozenset(trained)),
        )

    def shared_names(self, trained: Collection[str], layout: Layout) -> frozenset[str]:
        """Which of the trained tensors leave the site."""
        return frozenset(trained)

    def adapt_study(self, study: Study) -> Study:
        """The study with what the method sets beyond its backbone (`fedfms.methods.resolve_study`); as it is by default."""
        return study

    def extend_model(self, model: SegmentationModel) -> None:
        """Give the freshly built model what the method adds to it (`model.extras`); nothing by default."""

    def receive(self, site: SiteContext, received: Tensors) -> LocalInit:
        """What a site makes of a round's tensors: they replace its own, and the rest stays as it is."""
        return LocalInit({**site.own, **received}, site.memory)

    def personal_model(self, own: Tensors, memory: Tensors, received: Tensors) -> Tensors:
        """The trained tensors of the model that a site would use: as `receive`, without looking at training data."""
        return {**own, **received}

    def before_training(self, model: SegmentationModel, round_: int, received: Collection[str]) -> None:
        """Set the model for the training of a round, once the received model has been scored; see `after_training`.

        Shared tensors that were not received (a method may send a part) are frozen for the round by the caller.
        """

    def after_training(self, model: SegmentationModel) -> None:
        """Undo `before_training`."""

    def penalty(self, model: SegmentationModel, received: Tensors) -> torch.Tensor | None:
        """What is added to the loss of each step (scalar tensor), or None; `received` is on the model's device."""
        return None

    def loss(self, spec: TrainSpec) -> Loss:
        """The loss of (logits, masks), without `penalty`: the study's own."""
        return make_loss(spec)

    def optimizer(self, parameters: Mapping[str, torch.nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
        """The optimizer of a site's trained parameters; its state is kept from round to round."""
        return torch.optim.Adam(list(parameters.values()), lr=spec.lr, betas=(spec.beta1, spec.beta2))

    def learning_rate(self, spec: TrainSpec, round_: int) -> float:
        """The learning rate of a round (from 0), by the study's schedule."""
        return spec.lr * SCHEDULES[spec.lr_schedule](round_ / spec.rounds)

    def outgoing(self, round_: int, trained: Tensors, received: Collection[str]) -> Tensors:
        """What leaves the site after training: of all trained tensors, those of `sent_names`."""
        return {name: trained[name] for name in self.sent_names(round_, received)}

    def sent_names(self, round_: int, received: Collection[str]) -> tuple[str, ...]:
        """Names of what a site that received the tensors `received` sends back: the same."""
        return tuple(received)

    def dispatch(self, server: ServerState, sites: Sequence[str]) -> dict[str, Tensors]:
        """What each of `sites` gets in round `server.round`: its own mixture, or else the global model."""
        return {site: server.per_site.get(site, server.shared) for site in sites}

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """The server after this round's accepted updates, whatever their order; its round is one higher."""
        raise NotImplementedError
