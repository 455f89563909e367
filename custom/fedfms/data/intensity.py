"""A volume's intensities -> 8 bits, by one rule for all of its slices.

By default: clipped at the volume's 99th percentile, then linear from its minimum (0) to there (255), rounded; the
minimum and not 0, as FedFMS's and FedDG's own code does: it keeps what resampling or a stored offset put below 0,
and for a magnitude image with air round it, it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfms.data.imagefile import Fault
from fedfms.data.niftifile import Array

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
PERCENTILE = 99.0


def eight_bits(array: Array, padding: Mask | None = None) -> Pixels:
    """Intensities of any shape and kind of number as uint8 of the same shape, by the rule above; minimum and
    percentile are of what is not `padding` (same shape).

    Raises:
        Fault: all is padding, or so many voxels have the volume's smallest value that nothing would be seen.
    """
    # as float64, for between two whole numbers of few bits the percentile may overflow
    values = _seen(array, padding).astype(np.float64).reshape(-1)
    low, high = float(values.min()), float(np.percentile(values, PERCENTILE, overwrite_input=True))
    del values
    if not high > low:
        raise Fault(f"at least {PERCENTILE:.0f} % of the volume's voxels have one value, so it shows nothing")
    return _scaled(array, low, high)


def _seen(array: Array, padding: Mask | None) -> Array:
    """The voxels that are not padding."""
    seen = array if padding is None else array[~padding]
    if not seen.size:
        raise Fault("the volume is nothing but padding")
    return seen


def _scaled(array: Array, low: float, high: float) -> Pixels:
    """`low` and below is 0, `high` and above 255, and linear between them, rounded."""
    pixels = np.empty(array.shape, dtype=np.uint8)
    for index in range(len(array)):  # a part at a time: the float64 copy of a whole volume is large
        clipped = np.clip(array[index].astype(np.float64), low, high)
        pixels[index] = np.rint((clipped - low) / (high - low) * 255)
    return pixels


@dataclass(frozen=True)
class Window:
    """Intensities by a window: `centre` - `width` / 2 and below is 0, `centre` + `width` / 2 and above 255."""

    centre: float
    width: float

    def __call__(self, array: Array, padding: Mask | None = None) -> Pixels:
        """As `eight_bits`.

        Raises:
            Fault: all is padding, or all other voxels lie on one side of the window.
        """
        low, high = self.centre - self.width / 2, self.centre + self.width / 2
        seen = _seen(array, padding)
        if float(seen.max()) <= low or float(seen.min()) >= high:
            raise Fault("all of the volume's voxels lie on one side of the window, so it shows nothing")
        return _scaled(array, low, high)
