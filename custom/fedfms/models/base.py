"""What every network of a study offers, whatever it is made of."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROLES = ("encoder", "adapter", "decoder", "head", "extra", "unused")
EXTRAS = "extras."  # of the names of what a method adds to a network


class SegmentationModel(nn.Module, abc.ABC):
    """Images (B, 3, input_px, input_px) in 0..1 -> logits (B, n_structures, mask_px, mask_px).

    The caller chooses what trains (`requires_grad`); autograd stores nothing before the first such tensor. In training
    mode a network may give K logits of falling resolution, (B, K, n_structures, mask_px, mask_px), to a method of its
    own family, whose loss knows them.
    """

    # Names of tensors that a file of pre-trained weights may hold in vain: this network has no use for them.
    ignored_pretrained: ClassVar[tuple[str, ...]] = ()
    # Which methods train it: those of the same `Method.family`.
    family: ClassVar[str] = "sam"
    # Whether a step runs in torch's training mode: for a batch's own statistics, or for deep supervision.
    train_mode: ClassVar[bool] = False

    # What a method adds (`Method.extend_model`): embedding -> embedding of the same shape, before the decoder.
    extras: nn.Module | None

    def __init__(self, backbone: str, *, input_px: int, mask_px: int, n_structures: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_px = input_px
        self.mask_px = mask_px
        self.n_structures = n_structures
        self.extras = None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, input_px, input_px) in 0..1 -> logits (B, n_structures, mask_px, mask_px)."""
        return self.from_prefix(self.prefix(images))

    def check_size(self, images: Tensor) -> None:
        """Images must be (B, 3, input_px, input_px).

        Raises:
            ValueError: they are of another size.
        """
        if tuple(images.shape[1:]) != (3, self.input_px, self.input_px):
            size = f"(B, 3, {self.input_px}, {self.input_px})"
            raise ValueError(f"images must be {size}, not {tuple(images.shape)}")

    @abc.abstractmethod
    def prefix(self, images: Tensor) -> Tensor:
        """What depends on the images alone while only adapters, decoder and head train: (B, ...) features."""

    @property
    def prefix_is_costly(self) -> bool:
        """Whether keeping `prefix`'s features by image saves more than reading them back costs."""
        return False

    @abc.abstractmethod
    def from_prefix(self, features: Tensor) -> Tensor:
        """Logits (B, n_structures, mask_px, mask_px) from `prefix`'s features, bit-equal to `forward`."""

    @abc.abstractmethod
    def prefix_names(self) -> frozenset[str]:
        """Names, as in the state dict, of the parameters and buffers that `prefix` depends on.

        Cached features stay valid as long as none of them changes, nor the study's `model` section.
        """

    @abc.abstractmethod
    def roles(self) -> dict[str, str]:
        """One of `ROLES` for every parameter name; "unused" = no mask depends on it, no gradient."""

    @abc.abstractmethod
    def adapters_in_order(self) -> list[tuple[str, ...]]:
        """Parameter names of the adapters A_1..A_K, from input to output; empty without adapters."""

    def moving_buffers(self) -> tuple[str, ...]:
        """Names of the buffers that training moves: those of `extras`, and batch statistics where there are any."""
        return tuple(name for name, _ in self.named_buffers() if name.startswith(EXTRAS))

    def embedding_shape(self) -> tuple[int, int, int]:
        """(dim, height, width) of the image embedding that `extras` gets.

        Raises:
            ValueError: the network has none to give.
        """
        raise ValueError(f"{self.backbone} has no image embedding")

    def skip_blocks(self, blocks: Collection[int]) -> None:
        """Leave these transformer blocks (0-based, from input to output) out of the forward pass; () = none.

        Raises:
            ValueError: the network has no such blocks.
        """
        if blocks:
            raise ValueError(f"{self.backbone} has no blocks to skip")

    def work_by(self, *, plain_attention: bool = False, checkpointing: bool = False) -> None:
        """How the same numbers are worked out; a network that knows one way only has nothing to set.

        Args:
            plain_attention: by the code that the network comes from, which the fast one is held against.
            checkpointing: keep the input of each block alone, and work it out anew in the backward pass.
        """

    @property
    def plain_attention(self) -> bool:
        """Whether it works by the code that the network comes from, as `work_by` was told."""
        return False

    def pretrained_names(self) -> frozenset[str]:
        """Names, as in the state dict, of the tensors that a file of pre-trained weights must hold."""
        return frozenset(self.state_dict())

    def fit_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state`, with the tables that depend on the input size brought to this model's."""
        return dict(state)


class ImageEncoder(nn.Module, abc.ABC):
    """Images (B, 3, S, S) -> embedding (B, out_dim, grid, grid), in two parts; with adapters or without."""

    ignored_pretrained: ClassVar[tuple[str, ...]] = ()
    prefix_is_costly: ClassVar[bool] = False
    grid: int
    block_dims: tuple[int, ...]  # channels of each transformer block, from input to output
    adapters: nn.ModuleList  # one `BlockAdapters` for each transformer block, or none at all
    skipped: frozenset[int] = frozenset()  # indices into `block_dims` of the blocks that `rest` leaves out
    plain_attention: bool = False  # see `SegmentationModel.work_by`
    checkpointing: bool = False

    @abc.abstractmethod
    def prefix(self, images: Tensor) -> Tensor:
        """Everything before the first transformer block: images (B, 3, S, S) -> features."""

    @abc.abstractmethod
    def rest(self, features: Tensor) -> Tensor:
        """The transformer blocks and the neck: features -> embedding (B, out_dim, grid, grid)."""

    @abc.abstractmethod
    def prefix_modules(self) -> tuple[str, ...]:
        """Names of the modules and parameters of this encoder that `prefix` uses."""

    def checkpointed(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """block(*inputs); with `checkpointing`, nothing of it but its inputs is kept for the backward pass."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
        return out

    def fit_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `SegmentationModel.fit_pretrained`, with names inside this encoder."""
        return dict(state)
