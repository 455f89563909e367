"""SAM without prompts of a user: image encoder, SAM's mask decoder on a batch of images, structure head."""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedfms.errors import StudyError
from fedfms.models import segment_anything as sa
from fedfms.models.adapters import build_adapters
from fedfms.models.base import ImageEncoder, SegmentationModel
from fedfms.models.meta_device import on_meta_device
from fedfms.models.prompt import PromptEncoder
from fedfms.rng import seeded
from fedfms.study import ModelSpec

# As in segment-anything's build_sam.py, for pixels in 0..1 instead of 0..255.
PIXEL_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
PIXEL_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)
MASK_TOKENS = 4
UPSCALING = 4  # of the embedding grid, by the decoder's two transposed convolutions
_ENCODER, _ADAPTERS, _DECODER, _PROMPTS = (
    "image_encoder.", "image_encoder.adapters.", "mask_decoder.", "prompt_encoder.",
)  # fmt: skip
# Of SAM's prompt encoder, the positional encoding is used, and constant prompts that are made from the rest.
UNUSED_PROMPT_KEYS = tuple(
    f"{_PROMPTS}{name}." for name in ("point_embeddings", "not_a_point_embed", "mask_downscaling", "no_mask_embed")
) + (f"{_PROMPTS}tokens", f"{_PROMPTS}dense")  # of a network with constant prompts
_BLOCK = re.compile(r"(?:layers\.[1-9]\d*\.)?blocks\.\d+\.")  # a transformer block, by name in its encoder


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the mask decoder; the defaults are SAM's."""

    dim: int = 256
    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    iou_hidden: int = 256


def _mask_decoder(shape: DecoderShape) -> Any:
    transformer = sa.TwoWayTransformer(
        depth=shape.depth, embedding_dim=shape.dim, num_heads=shape.heads, mlp_dim=shape.mlp_dim
    )
    return sa.MaskDecoder(
        transformer_dim=shape.dim, transformer=transformer, num_multimask_outputs=MASK_TOKENS - 1,
        iou_head_depth=3, iou_head_hidden_dim=shape.iou_hidden,
    )  # fmt: skip


class PromptFreeSam(SegmentationModel):
    """Images (B, 3, S, S) in 0..1 -> logits (B, C, 4 x grid, 4 x grid), without prompts of a user.

    `head="token"` is the mask of token 0 (C = 1); `"conv"` a 1 x 1 convolution from the masks of all 4 tokens to C.

    Raises:
        StudyError: head "token" with more than one structure.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, spec: ModelSpec, n_structures: int, encoder: ImageEncoder, decoder: Any, prompts: PromptEncoder
    ) -> None:
        super().__init__(
            spec.backbone, input_px=spec.input_px, mask_px=UPSCALING * encoder.grid, n_structures=n_structures
        )
        kind = spec.head if spec.head != "auto" else ("token" if n_structures == 1 else "conv")
        if kind == "token" and n_structures != 1:
            raise StudyError(
                f"head 'token' makes one mask, but there are {n_structures} structures", where="model",
                do="use 'conv'",
            )  # fmt: skip
        self.image_encoder = encoder
        self.mask_decoder = decoder
        self.prompt_encoder = prompts
        self.head = nn.Conv2d(MASK_TOKENS, n_structures, 1) if kind == "conv" else None
        self.prefix_is_costly = encoder.prefix_is_costly or encoder.cut > 0
        self.ignored_pretrained = UNUSED_PROMPT_KEYS + tuple(_ENCODER + name for name in encoder.ignored_pretrained)
        self._normalise = spec.normalise == "sam"
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def prefix(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in 0..1 -> the encoder's features before its first transformer block.

        Raises:
            ValueError: images of another size.
        """
        self.check_size(images)
        if self._normalise:
            images = (images - self.pixel_mean) / self.pixel_std
        return self.image_encoder.prefix(images)

    def embedding_shape(self) -> tuple[int, int, int]:
        """(dim, grid, grid)."""
        return self.mask_decoder.transformer_dim, self.image_encoder.grid, self.image_encoder.grid

    def from_prefix(self, features: Tensor) -> Tensor:
        """`prefix`'s features -> logits (B, C, mask_px, mask_px)."""
        embedding = self.embed(features)
        return self.decode(embedding if self.extras is None else self.extras(embedding))

    def embed(self, features: Tensor) -> Tensor:
        """`prefix`'s features -> image embedding (B, dim, grid, grid)."""
        return self.image_encoder.rest(features)

    def decode(self, embedding: Tensor) -> Tensor:
        """Image embedding (B, dim, grid, grid) -> logits (B, C, mask_px, mask_px).

        SAM's `predict_masks` repeats one image for many prompts. Here there are many images with the same prompts or
        none, so its parts run directly on the batch, without the prediction of mask quality.
        """
        decoder, prompts = self.mask_decoder, self.prompt_encoder
        batch, dim, grid, _ = embedding.shape
        parts = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if prompts.tokens is not None and prompts.dense is not None:
            parts.append(prompts.tokens)
            embedding = embedding + prompts.dense.to(embedding.dtype)[:, None, None]
        tokens = torch.cat(parts).expand(batch, -1, -1)
        positions = prompts(grid).to(embedding.dtype)  # broadcast over the batch
        queries, keys = decoder.transformer(embedding, positions, tokens)
        upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(batch, dim, grid, grid))
        used = MASK_TOKENS if self.head is not None else 1
        hyper = torch.stack([decoder.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in range(used)], dim=1)
        masks = (hyper @ upscaled.flatten(2)).view(batch, used, *upscaled.shape[2:])
        return masks if self.head is None else self.head(masks)

    def prefix_names(self) -> frozenset[str]:
        """Patch embedding or stem, positions, convolutional stage; pixel mean and s.d. are constants."""
        starts = tuple(f"{_ENCODER}{name}" for name in self.image_encoder.prefix_modules())
        return frozenset(
            name for name in self.state_dict() if any(name == s or name.startswith(s + ".") for s in starts)
        )

    def role(self, name: str) -> str:
        """See the base class; with head "token", the hypernetworks of mask tokens 1..3 are unused."""
        if name.startswith(_ADAPTERS):
            return "adapter"
        if name.startswith(_ENCODER):
            return "encoder"
        if name.startswith("head."):
            return "head"
        unused = [f"{_DECODER}iou_prediction_head."]
        if self.head is None:
            unused += [f"{_DECODER}output_hypernetworks_mlps.{i}." for i in range(1, MASK_TOKENS)]
        return "unused" if name.startswith(tuple(unused)) else "decoder"

    def adapters_in_order(self) -> list[tuple[str, ...]]:
        """Names of A_1..A_K, two of each adapted block: first after attention, then parallel to the MLP."""
        return [
            tuple(f"{_ADAPTERS}{index}.{place}.{name}" for name, _ in adapter.named_parameters())
            for index, pair in enumerate(self.image_encoder.adapters)
            for place, adapter in pair.named_children()
        ]

    def blocks_above(self) -> dict[str, int]:
        """See the base class; parameters are registered in the order of the forward pass."""
        above, seen, depth = {}, set(), len(self.image_encoder.block_dims)
        for name, _ in self.image_encoder.named_parameters():
            if not name.startswith("adapters."):
                if block := _BLOCK.match(name):
                    seen.add(block[0])
                above[_ENCODER + name] = depth - len(seen)
        return above

    def skip_blocks(self, blocks: Collection[int]) -> None:
        """See the base class; a block is skipped with its adapters."""
        unknown = set(blocks) - set(range(len(self.image_encoder.block_dims) - self.image_encoder.cut))
        if unknown:
            raise ValueError(f"{self.backbone} has no blocks {sorted(unknown)}")
        self.image_encoder.skipped = frozenset(blocks)

    def configure(self, *, plain_attention: bool = False, gradient_checkpointing: bool = False) -> None:
        """See the base class; both concern the encoder."""
        self.plain_attention = self.image_encoder.plain_attention = plain_attention
        self.image_encoder.gradient_checkpointing = gradient_checkpointing

    def pretrained_names(self) -> frozenset[str]:
        """Encoder, decoder and positional encoding, but not adapters and head."""
        return frozenset(
            name for name in self.state_dict()
            if name.startswith((_ENCODER, _DECODER, _PROMPTS)) and not name.startswith(_ADAPTERS)
        )  # fmt: skip

    def fit_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint's tensors, with position tables resized to this input size, and the constant prompts."""
        inner = {n.removeprefix(_ENCODER): t for n, t in state.items() if n.startswith(_ENCODER)}
        fitted = {_ENCODER + name: table for name, table in self.image_encoder.fit_pretrained(inner).items()}
        prompts = self.prompt_encoder.fit_pretrained(
            {n.removeprefix(_PROMPTS): t for n, t in state.items() if n.startswith(_PROMPTS)}
        )
        return {**state, **fitted, **{_PROMPTS + name: tensor for name, tensor in prompts.items()}}


def build_sam(
    spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, blank: bool, plan: Mapping[str, Any],
    encoder: Callable[[ModelSpec], ImageEncoder], decoder: DecoderShape,
) -> PromptFreeSam:  # fmt: skip
    """A prompt-free SAM with the encoder that `encoder` builds.

    Every part draws from its own random stream, so the frozen tensors and the decoder are the same with and without
    adapters and for any number of structures. With `blank`, encoder and decoder have no memory until a checkpoint is
    loaded. `plan` does not apply.

    Raises:
        StudyError: input size, head and structures do not go together.
    """
    with on_meta_device() if blank else nullcontext():
        with seeded(seed, "encoder"):
            image_encoder = encoder(spec)
        with seeded(seed, "decoder"):
            mask_decoder, prompts = (
                _mask_decoder(decoder),
                PromptEncoder(decoder.dim, spec.input_px, spec.prompt_tokens),
            )
    if adapters:
        dims = image_encoder.block_dims
        image_encoder.cut = len(dims) - spec.adapted_blocks(len(dims))
        with seeded(seed, "adapters"):
            image_encoder.adapters = build_adapters(dims[image_encoder.cut :], spec)
    with seeded(seed, "head"):
        return PromptFreeSam(spec, n_structures, image_encoder, mask_decoder, prompts)
