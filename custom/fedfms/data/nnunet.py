"""nnU-Net's augmentation in 2D (Isensee et al., Nature Methods 2021, supplementary note 4), as MONAI transforms.

nnU-Net draws these on images of s.d. 1; here they are in 0..1, and the network itself scales (`models/nnunet.py`). Only
the noise has to know: its s.d. is given in parts of a typical image's own, 0.2. What leaves 0..1 is cut.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.transforms import (
    CastToTyped,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotated,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSimulateLowResolutiond,
    RandZoomd,
)

from fedfms.data.photometric import Clampd

_MODES = ("bilinear", "nearest")  # of an image, of its label values
_ZOOM_MODES = ("bilinear", "nearest-exact")
_TYPICAL_SD = 0.2
_MOST_NOISE = math.sqrt(0.1)  # variance up to 0.1


def spatial(keys: tuple[str, str]) -> list[Any]:
    """Rotation by any angle and scaling by 0.7 to 1.4, of uint8 image and label (channels, H, W); black around them."""
    return [
        RandRotated(keys, prob=0.2, range_x=math.pi, mode=_MODES, padding_mode="zeros"),
        RandZoomd(keys, prob=0.2, min_zoom=0.7, max_zoom=1.4, mode=_ZOOM_MODES, padding_mode="constant"),
        CastToTyped(keys, dtype=torch.uint8),
    ]


def intensity(keys: tuple[str, ...]) -> list[Any]:
    """Noise, blur, brightness, contrast, low resolution and gamma (also of the inverse), on images in 0..1."""
    return [
        RandGaussianNoised(keys, prob=0.1, std=_MOST_NOISE * _TYPICAL_SD, sample_std=True),
        RandGaussianSmoothd(keys, prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0)),
        RandScaleIntensityd(keys, prob=0.15, factors=0.25),
        RandScaleIntensityFixedMeand(keys, prob=0.15, factors=0.25, fixed_mean=True, preserve_range=True),
        RandSimulateLowResolutiond(keys, prob=0.25, zoom_range=(0.5, 1.0), upsample_mode="bicubic"),
        Clampd(keys),  # a power of a negative number is none
        RandAdjustContrastd(keys, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        Clampd(keys),
        RandAdjustContrastd(keys, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        Clampd(keys),
    ]
