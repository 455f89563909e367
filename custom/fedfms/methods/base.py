"""The contract of a method: what is trained, what is shared, what a site does with it, and how updates are aggregated.

A method is pure: dicts of tensors and numbers in, dicts out; no files, no NVFLARE. The same object runs in the
in-process loop (`fedfms.federation.inprocess`) and under NVFLARE (`fedfms.flare`), which is why both give the same
numbers.

The hooks, in the order of a round. Server: `dispatch`. Site: `on_receive` (the received model is then scored),
`before_training`, per step `loss` and `penalty`, `after_training`, `outgoing`. Server: `aggregate`.

To add a method: subclass `FedAvg`, or `FedMSA` to train adapters and decoder, in a file of its own (`fedprox.py` is an
example with an option); import it in `fedfms.methods` and add it to the registry there; write its card in
`docs/methods/` (copy one) and its row in README.md; build its job with `make jobs`. The tests over the registry then
run it; add a test of its arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch

from fedfms.methods.losses import Loss, make_loss
from fedfms.methods.optimizers import make_optimizer
from fedfms.methods.schedule import SCHEDULES
from fedfms.models.base import SegmentationModel
from fedfms.study import Study, TrainSpec

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """A model's tensors by role, for a method to choose from.

    Attributes:
        roles: parameter name -> one of `fedfms.models.base.ROLES`.
        adapters: names of the parameters of A_1..A_K, from input to output.
        buffers: names of buffers that training changes (batch statistics).
        blocks_above: see `SegmentationModel.blocks_above`.
    """

    roles: Mapping[str, str]
    adapters: tuple[tuple[str, ...], ...] = ()
    buffers: tuple[str, ...] = ()
    blocks_above: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: SegmentationModel) -> Layout:
        """The layout of a built model."""
        return cls(model.roles(), tuple(model.adapters_in_order()), model.moving_buffers(), model.blocks_above())


@dataclass(frozen=True)
class Partition:
    """Names of shared, private and frozen tensors, each in the model's order.

    shared + private = trained (parameters, and buffers that training changes); trained + frozen = all of them.
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
    """The server's state before round `round`; enough to resume a run with the same numbers.

    Attributes:
        shared: the global model's shared tensors.
        per_site: by site, the shared tensors that the method mixed for it; empty for most methods.
        state: what the method stores at the server: tensors of any dtype, numbers, texts, and lists and dicts of them;
            empty before the first round.
        notes: what this round's aggregation decided (SGCA's W), for people; JSON. `aggregate` must replace them.
    """

    shared: Tensors
    round: int = 0
    seed: int = 0
    per_site: Mapping[str, Tensors] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class LocalData(Protocol):
    """A site's training data, for methods that use them before a round's training."""

    def batches(self, share: float, purpose: str) -> Iterable[Any]:
        """Batches of a random `share` (0..1] of the training slices, drawn by (seed, site, round, purpose)."""

    def gradients(self, tensors: Tensors, names: Collection[str], batch: Any) -> tuple[float, Tensors]:
        """Loss of the model with the trained `tensors` on a batch, and its gradients with respect to `names`."""


@dataclass(frozen=True)
class SiteContext:
    """A site's state when a round's tensors arrive.

    Attributes:
        samples: slices that the site trains on.
        own: all its trained tensors after its last round, or the initial ones.
        stored: what the method stores at the site.
    """

    round: int
    samples: int
    own: Tensors
    stored: Tensors
    local_data: LocalData


@dataclass(frozen=True)
class LocalInit:
    """Local initialisation: the trained tensors with which a site begins a round, and what the method stores."""

    tensors: Tensors
    stored: Tensors = field(default_factory=dict)


class Method:
    """Base of all methods. It trains by roles and shares all that it trains; subclasses aggregate.

    Class attributes describe a method. Its options are keyword-only arguments of `__init__` with defaults, whose types
    and ranges `fedfms.methods.options.checked` checks.

    Attributes:
        name: in studies, on the command line and in `jobs/`.
        paper: name and venue, as in "FedProx, MLSys 2020".
        family: of the backbones that it trains.
        personal: every site ends with a personal model.
        sends_parts: a site may receive a part of the shared tensors.
        aggregates_by_mean: `aggregate` depends on the updates only through their sample-weighted mean, so that a robust
            rule may replace the updates (`fedfms.federation.robust`). A subclass that overrides `aggregate` states it.
        centralised: the data of all sites are pooled in one process; a baseline, not a federation.
        trained_roles: roles of the tensors that it trains.
        adapters: the model has adapters (MSA) or none (SAM).
        plan: of a network that is built to a plan (nnU-Net); empty: built by its rules.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    family: ClassVar[str] = "sam"
    personal: ClassVar[bool] = False
    sends_parts: ClassVar[bool] = False
    aggregates_by_mean: ClassVar[bool] = False
    centralised: ClassVar[bool] = False
    # An option may decide these three; `__init__` then sets them.
    trained_roles: frozenset[str]
    adapters: bool = False
    plan: Mapping[str, Any] = MappingProxyType({})
    layout: Layout = Layout({})

    # --- what is trained and shared

    def bind(self, layout: Layout) -> None:
        """Remember the layout of its model; called once, before `partition`."""
        self.layout = layout

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
        """The study with the settings that the method requires (see `fedfms.methods.resolve_study`)."""
        return study

    def extend_model(self, model: SegmentationModel) -> None:
        """Add the method's own module to a new model (`model.extras`)."""

    # --- at the site

    def on_receive(self, site: SiteContext, received: Tensors) -> LocalInit:
        """Local initialisation: the received tensors replace the site's own, the others stay."""
        return LocalInit({**site.own, **received}, site.stored)

    def personal_model(self, own: Tensors, stored: Tensors, received: Tensors) -> Tensors:
        """The trained tensors of the model that a site would use: as `on_receive`, without training data."""
        return {**own, **received}

    def before_training(self, model: SegmentationModel, round_: int, received: Collection[str]) -> None:
        """Prepare the model for the training of a round, after the received model was scored.

        The caller freezes shared tensors that were not received (where a method sends parts) for the round.
        """

    def after_training(self, model: SegmentationModel) -> None:
        """Undo `before_training`."""

    def penalty(self, model: SegmentationModel, received: Tensors) -> torch.Tensor | None:
        """A term of each step's loss (scalar), or None; `received` is on the model's device."""
        return None

    def loss(self, spec: TrainSpec) -> Loss:
        """The loss of (logits, masks), without `penalty`: by default the study's."""
        return make_loss(spec)

    def optimizer(self, parameters: Mapping[str, torch.nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
        """The optimizer of a site's trained parameters; its state persists between rounds."""
        return make_optimizer(parameters, spec, self.layout.blocks_above)

    def learning_rate(self, spec: TrainSpec, done: float) -> float:
        """The learning rate after the fraction `done` of the study's rounds, by its schedule."""
        return spec.lr * SCHEDULES[spec.lr_schedule](done)

    def outgoing(self, round_: int, trained: Tensors, received: Collection[str]) -> Tensors:
        """What leaves the site after training: the trained tensors of `sent_names`."""
        return {name: trained[name] for name in self.sent_names(round_, received)}

    def sent_names(self, round_: int, received: Collection[str]) -> tuple[str, ...]:
        """Names of what a site sends that received the tensors `received`: by default the same."""
        return tuple(received)

    # --- at the server

    def dispatch(self, server: ServerState, sites: Sequence[str]) -> dict[str, Tensors]:
        """What each of `sites` gets in round `server.round`: its own mixture, or else the global model."""
        return {site: server.per_site.get(site, server.shared) for site in sites}

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """The server state after this round's accepted updates, in any order; its round is one higher.

        Each update has the tensors of `server.shared`, or a part of them where the method sends parts.
        """
        raise NotImplementedError
