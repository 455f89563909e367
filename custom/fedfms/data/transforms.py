"""MONAI dictionary transforms from decoded slices to a model's input.

In: {"image": uint8 (1 or 3, H, W), "label": uint8 (1, H, W)} at native resolution. Out: {"image": float32 (3, input_px,
input_px) in 0..1, "label": float32 (C, mask_px, mask_px) in {0, 1}}. Both are stretched to a square, regardless of the
aspect ratio, as in FedFMS's own loader.

The arithmetic uses NumPy's and torch's uint8 kernels on one thread: on a machine shared with other sites, a float
pipeline on all threads took 30 to 60 times as long.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, DeleteItemsd, MapTransform, RandFlipd, RandSpatialCropd
from torch.nn import functional

from fedfms.data.augmentation import nnunet_intensity, nnunet_spatial, photometric
from fedfms.data.native import centres
from fedfms.study import DataSpec, Structure

KEYS = ("image", "label")
VIEW = "view"
"""Key of a sample: identifies the content of an image that was flipped or not changed; absent after other changes."""
Sample = dict[Hashable, Any]


class RandFlipViewd(RandFlipd):
    """A random flip along one axis, which it appends to the sample's `VIEW`."""

    def __init__(self, keys: Sequence[str], axis: int) -> None:
        super().__init__(keys, prob=0.5, spatial_axis=axis)
        self._axis = axis

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> Sample:
        sample = super().__call__(data, lazy=lazy)
        return {**sample, VIEW: f"{sample[VIEW]}-{self._axis}"} if self._do_transform else sample


class MasksOfStructuresd(MapTransform):
    """Label values uint8 (1, H, W) -> one mask per structure, float32 (C, size_px, size_px) in {0, 1}, nearest-exact.

    Structures may overlap (a disc is its rim and its cup). Samples the value at each target pixel's centre, so masks
    are neither shifted nor mixed. Sampling commutes with the lookup of values, so the lookup on the small map gives the
    same as resizing each full-size binary mask.
    """

    def __init__(self, keys: Sequence[str], structures: Sequence[Structure], size_px: int) -> None:
        super().__init__(keys)
        self._size_px = size_px
        self._table = np.zeros((len(structures), 256), dtype=np.float32)
        for channel, structure in enumerate(structures):
            self._table[channel, list(structure.values)] = 1

    def __call__(self, data: Mapping[Hashable, Any]) -> Sample:
        sample = dict(data)
        for key in self.key_iterator(sample):
            label = plain(sample[key]).numpy()[0]
            rows, columns = (centres(length, self._size_px) for length in label.shape)
            sample[key] = torch.from_numpy(self._table[:, label[rows[:, None], columns]])
        return sample


class ResizeImaged(MapTransform):
    """uint8 (1 or 3, H, W) -> float32 (3, size_px, size_px) in 0..1, bilinear, antialiased where it shrinks.

    Resizes in uint8, as SAM's own preprocessing; a grey image is expanded to three channels afterwards. MONAI's
    antialiasing (a Gaussian before the resize) would blur over more than the area of a target pixel.
    """

    def __init__(self, keys: Sequence[str], size_px: int) -> None:
        super().__init__(keys)
        self._size = (size_px, size_px)

    def __call__(self, data: Mapping[Hashable, Any]) -> Sample:
        sample = dict(data)
        for key in self.key_iterator(sample):
            image = plain(sample[key])
            if tuple(image.shape[-2:]) != self._size:
                image = functional.interpolate(
                    image[None], self._size, mode="bilinear", align_corners=False, antialias=True
                )[0]
            scaled = np.empty((3, *self._size), dtype=np.float32)
            np.divide(image.numpy(), np.float32(255), out=scaled)
            sample[key] = torch.from_numpy(scaled)
        return sample


def make_transforms(spec: DataSpec, *, input_px: int, mask_px: int, augment: bool) -> Compose:
    """The study's transforms; with `augment` also its random crop, flips, rotation and intensity changes."""
    steps: list[Any] = []
    if augment and spec.crop_px is not None:
        steps.append(RandSpatialCropd(KEYS, roi_size=(spec.crop_px, spec.crop_px), random_size=False))
    if augment and spec.augment != "none":
        steps += [RandFlipViewd(KEYS, axis) for axis in (0, 1)]
    if augment and spec.augment == "nnunet":
        steps += nnunet_spatial(KEYS)
    steps += [MasksOfStructuresd(("label",), spec.structures, mask_px), ResizeImaged(("image",), input_px)]
    if augment and spec.augment == "photometric":
        steps += photometric(("image",))
    if augment and spec.augment == "nnunet":
        steps += nnunet_intensity(("image",))
    if augment and not spec.few_views:
        steps.append(DeleteItemsd((VIEW,)))
    return Compose(steps)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without MONAI's metadata, whose bookkeeping in every operation costs more than these transforms."""
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
