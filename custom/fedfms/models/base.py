"""Base classes of the networks: the interface that training and methods use."""

import abc
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROLES = ("encoder", "adapter", "decoder", "head", "extra", "unused")
EXTRAS = "extras."  # prefix of the names of parameters that a method adds to a network


class SegmentationModel(nn.Module, abc.ABC):
    """Images (B, 3, input_px, input_px) in 0..1 -> logits (B, n_structures, mask_px, mask_px).

    The caller chooses the trained parameters (`requires_grad`); autograd stores nothing before the first of them. In
    training mode a network may return K logits of decreasing resolution, (B, K, n_structures, mask_px, mask_px), for
    the loss of a method of its own family.
    """

    # Prefixes of names in a file of pre-trained weights that this network does not use.
    ignored_pretrained: tuple[str, ...] = ()
    # Whether caching `prefix`'s features by image is faster than computing them.
    prefix_is_costly: bool = False
    # Whether `configure` selected the original code.
    plain_attention: bool = False
    # Methods of the same `Method.family` train it.
    family: ClassVar[str] = "sam"
    # Whether training steps run in torch's training mode, for batch statistics or deep supervision.
    train_mode: ClassVar[bool] = False

    # Added by a method (`Method.extend_model`): embedding -> embedding of the same shape, before the decoder.
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
        """Check that images are (B, 3, input_px, input_px).

        Raises:
            ValueError: they are not.
        """
        if tuple(images.shape[1:]) != (3, self.input_px, self.input_px):
            size = f"(B, 3, {self.input_px}, {self.input_px})"
            raise ValueError(f"images must be {size}, not {tuple(images.shape)}")

    @abc.abstractmethod
    def prefix(self, images: Tensor) -> Tensor:
        """The features (B, ...) that depend on the images alone while only adapters, decoder and head train."""

    @abc.abstractmethod
    def from_prefix(self, features: Tensor) -> Tensor:
        """Logits (B, n_structures, mask_px, mask_px) from `prefix`'s features, bit-equal to `forward`."""

    def prefix_names(self) -> frozenset[str]:
        """Names, as in the state dict, of the parameters and buffers that `prefix` depends on.

        Cached features are valid until one of these or the study's `model` section changes.
        """
        return frozenset()

    def roles(self) -> dict[str, str]:
        """One of `ROLES` for every parameter name; "unused": no mask depends on it, so it has no gradient."""
        names = (name for name, _ in self.named_parameters())
        return {name: "extra" if name.startswith(EXTRAS) else self.role(name) for name in names}

    @abc.abstractmethod
    def role(self, name: str) -> str:
        """The role of a parameter of the network itself, without `extras`."""

    def adapters_in_order(self) -> list[tuple[str, ...]]:
        """Parameter names of the adapters A_1..A_K, from input to output; empty without adapters."""
        return []

    def blocks_above(self) -> dict[str, int]:
        """For each parameter of the encoder, the number of transformer blocks between it and the decoder."""
        return {}

    def moving_buffers(self) -> tuple[str, ...]:
        """Names of the buffers that training changes: those of `extras`, and running batch statistics."""
        return tuple(name for name, _ in self.named_buffers() if name.startswith(EXTRAS))

    def embedding_shape(self) -> tuple[int, int, int]:
        """(dim, height, width) of the image embedding that `extras` receives.

        Raises:
            ValueError: the network has no image embedding.
        """
        raise ValueError(f"{self.backbone} has no image embedding")

    def skip_blocks(self, blocks: Collection[int]) -> None:
        """Skip these transformer blocks in the forward pass: from 0, of those that `from_prefix` computes; () resets.

        Raises:
            ValueError: the network has no such blocks.
        """
        if blocks:
            raise ValueError(f"{self.backbone} has no blocks to skip")

    def configure(self, *, plain_attention: bool = False, gradient_checkpointing: bool = False) -> None:
        """Select the implementation, which does not change the numbers; ignored by networks with only one.

        Args:
            plain_attention: use the original code of the network, the reference of the fast implementation.
            gradient_checkpointing: store only the input of each block, and recompute the block in the backward pass.
        """

    def pretrained_names(self) -> frozenset[str]:
        """Names, as in the state dict, of the tensors that a file of pre-trained weights must contain."""
        return frozenset(self.state_dict())

    def fit_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state`, with tables that depend on the input size resized to this model's."""
        return dict(state)


class ImageEncoder(nn.Module, abc.ABC):
    """Images (B, 3, S, S) -> embedding (B, out_dim, grid, grid), in two parts, with or without adapters."""

    ignored_pretrained: ClassVar[tuple[str, ...]] = ()
    prefix_is_costly: ClassVar[bool] = False
    grid: int
    block_dims: tuple[int, ...]  # channels of each transformer block, from input to output
    adapters: nn.ModuleList  # one `BlockAdapters` for each transformer block from `cut` on, or empty
    cut: int = 0  # number of transformer blocks that `prefix` computes; if all, also the neck
    skipped: frozenset[int] = frozenset()  # blocks that `rest` skips, counted from `cut`
    plain_attention: bool = False  # see `SegmentationModel.configure`
    gradient_checkpointing: bool = False

    @abc.abstractmethod
    def prefix(self, images: Tensor) -> Tensor:
        """Everything before the transformer block `cut`: images (B, 3, S, S) -> features (B, ...)."""

    @abc.abstractmethod
    def rest(self, features: Tensor) -> Tensor:
        """The other transformer blocks and the neck: features -> embedding (B, out_dim, grid, grid)."""

    @abc.abstractmethod
    def prefix_modules(self) -> tuple[str, ...]:
        """Names of the modules and parameters of this encoder that `prefix` uses."""

    @property
    def is_whole_prefix(self) -> bool:
        """Whether `prefix` computes the whole embedding."""
        return self.cut == len(self.block_dims)

    def block_adapters(self, index: int) -> Any:
        """The adapters of the transformer block `index`; None if it has none."""
        return self.adapters[index - self.cut] if self.adapters and index >= self.cut else None

    def uses_plain_code(self) -> bool:
        """Whether to run the original code: if selected, and in an export, which needs torch's own operations."""
        return self.plain_attention or torch.jit.is_tracing()

    def run_block(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """block(*inputs), with gradient checkpointing if enabled; blocks must not use random numbers."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out

    def fit_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `SegmentationModel.fit_pretrained`, with names inside this encoder."""
        return dict(state)
