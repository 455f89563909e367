"""The U-Net with batch normalisation, trained from scratch: what the federated SAM is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedfms.errors import StudyError
from fedfms.models.conv import ConvModel, mask_size
from fedfms.rng import seeded
from fedfms.study import ModelSpec

_STEP = 16  # four poolings
_MIN_PX = 32  # below, the lowest level is one pixel, and a batch of one has no statistics


@dataclass(frozen=True)
class UNetShape:
    """Channels from the full resolution down; masks are at most `max_mask_px`, what the SAM beside it is scored at."""

    channels: tuple[int, int, int, int, int] = (64, 128, 256, 512, 1024)  # Ronneberger et al., MICCAI 2015
    max_mask_px: int = 256


class UNet(ConvModel):
    """MONAI's BasicUNet: two 3 x 3 convolutions a level, max pooling, transposed convolutions, batch norm, ReLU.

    Unlike MONAI's `UNet`, which strides and adds residually, it is the network of the paper that everyone calls so.
    Images go in as they are, 0..1; `model.normalise`, `head` and the like are SAM's and mean nothing here.

    Raises:
        StudyError: an input size that four poolings do not divide.
    """

    family = "unet"

    def __init__(self, spec: ModelSpec, n_structures: int, shape: UNetShape) -> None:
        if spec.input_px % _STEP or spec.input_px < _MIN_PX:
            raise StudyError(
                f"input_px {spec.input_px} does not fit {spec.backbone}", where="model",
                do=f"a multiple of {_STEP}, {_MIN_PX} or more",
            )  # fmt: skip
        mask_px = mask_size(spec.input_px, shape.max_mask_px)
        super().__init__(spec.backbone, input_px=spec.input_px, mask_px=mask_px, n_structures=n_structures)
        # Here, for it imports every network that MONAI has, segment-anything among them.
        from monai.networks.nets import BasicUNet

        self.net = BasicUNet(
            spatial_dims=2, in_channels=3, out_channels=n_structures, features=(*shape.channels, shape.channels[0]),
            act=("relu", {"inplace": True}), norm="batch", bias=False,
        )  # fmt: skip

    def prefix(self, images: Tensor) -> Tensor:
        """The images themselves: everything trains."""
        self.check_size(images)
        return images

    @staticmethod
    def _role(name: str) -> str:
        if name.startswith("net.final_conv."):
            return "head"
        return "decoder" if name.startswith("net.upcat_") else "encoder"

    def moving_buffers(self) -> tuple[str, ...]:
        """Running mean, variance and count of every batch norm."""
        return tuple(name for name, _ in self.named_buffers())


def build_unet(
    spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, blank: bool, plan: Mapping[str, Any],
    shape: UNetShape,
) -> UNet:  # fmt: skip
    """A U-Net. It has nothing to adapt, nothing worth leaving `blank`, and no plan to follow.

    Raises:
        StudyError: an input size that does not fit.
    """
    with seeded(seed, "unet"):
        return UNet(spec, n_structures, shape)
