"""Photometric augmentation: what differs from device to device and not from structure to structure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import (
    MapTransform,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)


class Clampd(MapTransform):
    """Images (3, H, W) cut to 0..1."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = sample[key].clamp(0, 1)
        return sample


def photometric(keys: tuple[str, ...]) -> list[Any]:
    """Gamma, gain, gain by channel, offset and noise, each at random, on images (3, H, W) in 0..1."""
    return [
        RandAdjustContrastd(keys, prob=0.7, gamma=(0.6, 1.7)),
        RandScaleIntensityd(keys, prob=0.7, factors=0.3),
        RandScaleIntensityd(keys, prob=0.7, factors=0.2, channel_wise=True),
        RandShiftIntensityd(keys, prob=0.7, offsets=0.15),
        RandGaussianNoised(keys, prob=0.5, std=0.05),
        Clampd(keys),
    ]
