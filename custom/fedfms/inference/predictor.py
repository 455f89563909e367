"""Slices at native size -> probabilities, and from these masks at native size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedfms.data.labelmap import label_map, own_values
from fedfms.data.native import is_inside, native_probabilities
from fedfms.data.transforms import ResizeImaged, Sample
from fedfms.inference.inputs import Pixels
from fedfms.models import SegmentationModel
from fedfms.study import Structure
from fedfms.training.precision import Forward, available


def model_input(pixels: Pixels, input_px: int) -> torch.Tensor:
    """A slice, uint8 (H, W) or (H, W, 3) -> float32 (3, input_px, input_px) in 0..1, as training makes it."""
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    sample: Sample = {"image": torch.from_numpy(channels_first.copy())}  # torch wants it writable
    image: torch.Tensor = ResizeImaged(("image",), input_px)(sample)["image"]
    return image


def probabilities(
    model: SegmentationModel, slices: Sequence[Pixels], batch_size: int, precision: str = "float32", *,
    tuned: bool = True,
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """(C, mask_px, mask_px) in 0..1 for each slice, in order; in float32 where the device lacks the precision.

    `tuned`: as of `Forward`.
    """
    device = next(model.parameters()).device
    forward = Forward(model, precision if available(precision, device) else "float32", tuned=tuned)
    for start in range(0, len(slices), batch_size):
        batch = torch.stack([model_input(pixels, model.input_px) for pixels in slices[start : start + batch_size]])
        with torch.inference_mode():
            found = torch.sigmoid(forward.logits(batch)).cpu()
        yield from found.numpy()


@dataclass(frozen=True)
class SliceMasks:
    """Masks of a slice at its own size: bool (C, H, W), and as label values (H, W), None where no map holds them."""

    masks: NDArray[np.bool_]
    labels: NDArray[np.uint8] | None


def native(found: NDArray[np.float32], size: tuple[int, int], structures: Sequence[Structure]) -> SliceMasks:
    """The masks of a slice of `size` (H, W), of its probabilities (C, mask_px, mask_px).

    Where a map holds all structures, the masks are the map's: what a file says and what is counted agree.
    """
    values = [structure.values for structure in structures]
    smooth = native_probabilities(found, size)
    masks = is_inside(smooth)
    own = own_values(values)
    if own is None:
        return SliceMasks(masks, None)
    labels = label_map(smooth, masks, values)
    return SliceMasks(np.stack([np.isin(labels, of) for of in values]), labels)
