"""Prompt tokens of SAM's mask decoder that are the same for every image; no prompt of a user enters the network.

SAM's decoder was trained with a prompt in every image. LiteMedSAM's was always given a box, and without one its logits
lie far below zero everywhere. The tokens here are what its prompt encoder makes of a box around the whole image, inset
as in LiteMedSAM's training by up to 12 of 256 px.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fedfms.models import segment_anything as sa
from fedfms.models.attention import without_autocast

INSET = 12 / 256  # of the image's side
_CORNERS = ("point_embeddings.2.weight", "point_embeddings.3.weight")  # top left, bottom right
_NO_MASK, _FREQUENCIES = "no_mask_embed.weight", "pe_layer.positional_encoding_gaussian_matrix"

Kind = Literal["none", "whole_image", "learned"]


class PromptEncoder(nn.Module):
    """The positional encoding of SAM's prompt encoder (fixed random frequencies), and constant prompts.

    Args:
        dim: of the decoder.
        input_px: side of the network's input; the box is given in its pixels.
        kind: whole_image: the prompts are buffers. learned: parameters. none: there are none.

    Attributes:
        tokens: (2, dim), of the box's corners; None if there are no prompts.
        dense: (dim,), added to the embedding of the image at each position.
    """

    tokens: Tensor | None
    dense: Tensor | None

    def __init__(self, dim: int, input_px: int, kind: Kind) -> None:
        super().__init__()
        self.pe_layer = sa.PositionEmbeddingRandom(dim // 2)
        self._input_px = input_px
        tokens = dense = None
        if kind != "none":  # without a checkpoint: as the prompt encoder of segment-anything draws its embeddings
            *corners, dense = torch.randn(3, dim)
            tokens = self._corners(self.pe_layer.positional_encoding_gaussian_matrix) + torch.stack(corners)
        for name, value in (("tokens", tokens), ("dense", dense)):
            if kind == "learned" and value is not None:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, grid: int) -> Tensor:
        """Positional encoding (1, dim, grid, grid) of the image grid."""
        frequencies = self.pe_layer.positional_encoding_gaussian_matrix
        with without_autocast(frequencies.device):  # the large phases need all digits
            encoding: Tensor = self.pe_layer((grid, grid))
        return encoding[None]

    def fit_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompts that a prompt encoder's tensors make, by name; empty if `state` lacks one of them."""
        if self.tokens is None or any(name not in state for name in (*_CORNERS, _NO_MASK, _FREQUENCIES)):
            return {}
        corners = torch.cat([state[name].float() for name in _CORNERS])
        return {
            "tokens": self._corners(state[_FREQUENCIES].float()) + corners,
            "dense": state[_NO_MASK].float().reshape(-1),
        }

    def _corners(self, frequencies: Tensor) -> Tensor:
        """Positional encoding (2, dim) of the box's corners, by frequencies (2, dim / 2)."""
        inset = INSET * self._input_px
        pixels = torch.tensor([inset, self._input_px - inset], device=frequencies.device)[:, None].expand(2, 2)
        phases = 2 * math.pi * ((2 * (pixels + 0.5) / self._input_px - 1) @ frequencies)
        return torch.cat([phases.sin(), phases.cos()], dim=-1)
