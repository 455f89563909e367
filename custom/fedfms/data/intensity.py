"""Converts a volume's intensities to 8 bits, by one rule for all of its slices.

By default: clip at the volume's 99th percentile, then scale linearly from its minimum (0) to there (255), and round.
The lower end is the minimum, not 0, as in FedFMS's and FedDG's own code: this preserves values that resampling or a
stored offset moved below 0, and for a magnitude image surrounded by air, the minimum is 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfms.data.imagefile import Fault
from fedfms.data.niftifile import Array

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
PERCENTILE = 99.0


def eight_bits(array: Array, padding: Mask | None = None) -> Pixels:
    """Intensities of any shape and dtype as uint8 of the same shape, by the rule above.

    Minimum and percentile are computed without `padding` (same shape).

    Raises:
        Fault: all voxels are padding, or nearly all have the volume's smallest value, so the image would be black.
    """
    # float64: interpolation between two integers of few bits may overflow
    values = _unpadded(array, padding).astype(np.float64).reshape(-1)
    low, high = float(values.min()), float(np.percentile(values, PERCENTILE, overwrite_input=True))
    del values
    if not high > low:
        raise Fault(f"at least {PERCENTILE:.0f} % of the volume's voxels have one value, so it shows nothing")
    return _scaled(array, low, high)


def _unpadded(array: Array, padding: Mask | None) -> Array:
    """The voxels that are not padding."""
    values = array if padding is None else array[~padding]
    if not values.size:
        raise Fault("the volume consists of padding only")
    return values


def _scaled(array: Array, low: float, high: float) -> Pixels:
    """Linear from `low` (0) to `high` (255), clipped and rounded."""
    pixels = np.empty(array.shape, dtype=np.uint8)
    for index in range(len(array)):  # slice by slice: a float64 copy of the whole volume is large
        clipped = np.clip(array[index].astype(np.float64), low, high)
        pixels[index] = np.rint((clipped - low) / (high - low) * 255)
    return pixels


@dataclass(frozen=True)
class Window:
    """Intensities by a window: linear from `centre` - `width` / 2 (0) to `centre` + `width` / 2 (255), clipped."""

    centre: float
    width: float

    def __call__(self, array: Array, padding: Mask | None = None) -> Pixels:
        """As `eight_bits`.

        Raises:
            Fault: all voxels are padding, or all others lie on one side of the window.
        """
        low, high = self.centre - self.width / 2, self.centre + self.width / 2
        values = _unpadded(array, padding)
        if float(values.max()) <= low or float(values.min()) >= high:
            raise Fault("all of the volume's voxels lie on one side of the window, so it shows nothing")
        return _scaled(array, low, high)
