"""From decoded slices to what a model takes, as MONAI dictionary transforms.

A sample enters as {"image": uint8 (1 or 3, H, W), "label": uint8 (1, H, W)} at native resolution and leaves
as {"image": float32 (3, input_px, input_px) in 0..1, "label": float32 (C, mask_px, mask_px) in {0, 1}}. The
aspect ratio is not kept: both are stretched to a square, as in FedFMS's own loader.

The arithmetic is NumPy's and torch's uint8 kernels, on one thread: a float pipeline on all threads took 30 to
60 times as long on a machine that other sites share.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, RandFlipd, RandSpatialCropd
from torch.nn import functional

from fedfms.data import nnunet
from fedfms.data.native import centres
from fedfms.data.photometric import photometric
from fedfms.study import DataSpec, Structure

KEYS = ("image", "label")
Sample = dict[Hashable, Any]


class MasksOfStructuresd(MapTransform):
    """Label values uint8 (1, H, W) -> float32 (C, size_px, size_px) in {0, 1}, one mask a structure,
    nearest-exact.

    Structures may overlap (a disc is its rim and its cup). Sampling takes the value at each target pixel's
    centre, so masks neither shift nor mix values, and it commutes with the choice of values: the small map is
    looked up, which gives what resizing each full-size binary mask would.
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
    """uint8 (1 or 3, H, W) -> float32 (3, size_px, size_px) in 0..1, bilinear, with antialiasing where it
    shrinks.

    Resized in uint8, as SAM's own preprocessing does; a grey image as one channel, expanded after. MONAI's
    own antialiasing (a Gaussian before the resize) blurs more than the area that a target pixel covers.
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
    """Random crop at native resolution, flips, nnU-Net's rotation (when `augment`, as the study says), masks, resize,
    scale, and what changes intensities.
    """
    steps: list[Any] = []
    if augment and spec.crop_px is not None:
        steps.append(RandSpatialCropd(KEYS, roi_size=(spec.crop_px, spec.crop_px), random_size=False))
    if augment and spec.augment != "none":
        steps += [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in (0, 1)]
    if augment and spec.augment == "nnunet":
        steps += nnunet.spatial(KEYS)
    steps += [MasksOfStructuresd(("label",), spec.structures, mask_px), ResizeImaged(("image",), input_px)]
    if augment and spec.augment == "photometric":
        steps += photometric(("image",))
    if augment and spec.augment == "nnunet":
        steps += nnunet.intensity(("image",))
    return Compose(steps)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without MONAI's metadata, whose bookkeeping costs more than these transforms, and more than a small
    network: every operation on such a tensor is one of MONAI's.
    """
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
