"""Intensity and spatial augmentation as MONAI transforms: "photometric" and nnU-Net's.

`photometric` changes what differs between devices. nnU-Net's augmentation in 2D (Isensee et al., Nature Methods 2021,
supplementary note 4) is for images of s.d. 1. Here images are in 0..1 and the network normalises them
(`models/nnunet.py`), so the s.d. of its noise is scaled by a typical image's s.d., 0.2. Values are clipped to 0..1.
"""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import (
    CastToTyped,
    MapTransform,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotated,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    RandZoomd,
)

_MODES = ("bilinear", "nearest")  # for an image, for its label values
_ZOOM_MODES = ("bilinear", "nearest-exact")
_TYPICAL_SD = 0.2
_MAX_NOISE_SD = math.sqrt(0.1)


class Clampd(MapTransform):
    """Images (3, H, W) clipped to 0..1."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = sample[key].clamp(0, 1)
        return sample


def photometric(keys: tuple[str, ...]) -> list[Any]:
    """Random gamma, gain, gain by channel, offset and noise, on images (3, H, W) in 0..1."""
    return [
        RandAdjustContrastd(keys, prob=0.7, gamma=(0.6, 1.7)),
        RandScaleIntensityd(keys, prob=0.7, factors=0.3),
        RandScaleIntensityd(keys, prob=0.7, factors=0.2, channel_wise=True),
        RandShiftIntensityd(keys, prob=0.7, offsets=0.15),
        RandGaussianNoised(keys, prob=0.5, std=0.05),
        Clampd(keys),
    ]


def nnunet_spatial(keys: tuple[str, str]) -> list[Any]:
    """Random rotation by any angle and scaling by 0.7 to 1.4, of uint8 image and label (C, H, W), zero-padded."""
    return [
        RandRotated(keys, prob=0.2, range_x=math.pi, mode=_MODES, padding_mode="zeros"),
        RandZoomd(keys, prob=0.2, min_zoom=0.7, max_zoom=1.4, mode=_ZOOM_MODES, padding_mode="constant"),
        CastToTyped(keys, dtype=torch.uint8),
    ]


def nnunet_intensity(keys: tuple[str, ...]) -> list[Any]:
    """Random noise, blur, brightness, contrast, low resolution and gamma (also of the inverse), on images in 0..1."""
    return [
        RandGaussianNoised(keys, prob=0.1, std=_MAX_NOISE_SD * _TYPICAL_SD, sample_std=True),
        RandGaussianSmoothd(keys, prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0)),
        RandScaleIntensityd(keys, prob=0.15, factors=0.25),
        RandScaleIntensityFixedMeand(keys, prob=0.15, factors=0.25, fixed_mean=True, preserve_range=True),
        RandSimulateLowResolutiond(keys, prob=0.25, zoom_range=(0.5, 1.0), upsample_mode="bicubic"),
        Clampd(keys),  # gamma needs values of 0 or more
        RandAdjustContrastd(keys, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        Clampd(keys),
        RandAdjustContrastd(keys, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        Clampd(keys),
    ]
