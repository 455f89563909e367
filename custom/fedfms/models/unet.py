"""The U-Net with batch normalisation, trained from scratch: the baseline of the federated SAM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedfms.errors import StudyError
from fedfms.models.conv import ConvModel, mask_size
from fedfms.rng import seeded
from fedfms.study import ModelSpec

_STEP = 16  # four poolings
_MIN_PX = 32  # at less, the lowest level is one pixel, and a batch of one image has no statistics


@dataclass(frozen=True)
class UNetShape:
    """Channels from the full resolution down, and the largest mask size: that of the SAM that it is compared with."""

    channels: tuple[int, int, int, int, int] = (64, 128, 256, 512, 1024)  # Ronneberger et al., MICCAI 2015
    max_mask_px: int = 256


class UNet(ConvModel):
    """MONAI's BasicUNet: two 3 x 3 convolutions a level, max pooling, transposed convolutions, batch norm, ReLU.

    This is the network of the original paper; MONAI's `UNet` has strides and residual units instead. Images enter
    unchanged, 0..1; `model.normalise`, `head` and the other options of SAM have no effect.

    Raises:
        StudyError: an input size that four poolings do not divide.
    """

    family = "unet"
    head_names = ("final_conv.",)
    decoder_names = ("upcat_",)

    def __init__(self, spec: ModelSpec, n_structures: int, shape: UNetShape) -> None:
        if spec.input_px % _STEP or spec.input_px < _MIN_PX:
            raise StudyError(
                f"input_px {spec.input_px} does not fit {spec.backbone}", where="model",
                do=f"a multiple of {_STEP}, {_MIN_PX} or more",
            )  # fmt: skip
        mask_px = mask_size(spec.input_px, shape.max_mask_px)
        super().__init__(spec.backbone, input_px=spec.input_px, mask_px=mask_px, n_structures=n_structures)
        # Imported here because it loads all of MONAI's networks.
        from monai.networks.nets import BasicUNet

        self.net = BasicUNet(
            spatial_dims=2, in_channels=3, out_channels=n_structures, features=(*shape.channels, shape.channels[0]),
            act=("relu", {"inplace": True}), norm="batch", bias=False,
        )  # fmt: skip


def build_unet(
    spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, blank: bool, plan: Mapping[str, Any],
    shape: UNetShape,
) -> UNet:  # fmt: skip
    """A U-Net; `adapters`, `blank` and `plan` do not apply.

    Raises:
        StudyError: an input size that does not fit.
    """
    with seeded(seed, "unet"):
        return UNet(spec, n_structures, shape)
