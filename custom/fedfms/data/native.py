"""Resizes a model's small masks to the native size of an image: the inverse of `transforms.MasksOfStructuresd`.

Small mask pixel i is a sample at native pixel `centres(n, size)[i]`: for 512 -> 256, every odd one. Nearest-exact or
bilinear interpolation treats samples as means over blocks, which shifts masks by up to half a native pixel and makes
stepped outlines. Here each sample stays at its position, and cubic B-splines draw the outline between them. Masks of
an image that is not larger than the small masks are restored exactly. For shrunk masks of ellipses, Dice is at least
0.97 from 30 px across (shrunk up to 2 x), 56 px (3 x) and 64 px (4 x): tests/data/test_native.py

Needs NumPy alone: an exported bundle contains a copy of this file.
"""

import numpy as np
from numpy.typing import NDArray

_TIE = 1e-6  # a probability of one half is inside on every machine, although sums of thirds and sixths are not exact


def native_probabilities(probabilities: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float64]:
    """Probabilities (C, h, w) in 0..1 -> smoothed ones (C, H, W), `size` = (H, W)."""
    rows, columns = (_weights(n, small) for n, small in zip(size, probabilities.shape[1:], strict=True))
    smoothed: NDArray[np.float64] = rows @ probabilities.astype(np.float64) @ columns.T
    return smoothed


def is_inside(probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a smoothed probability is at least one half, up to rounding."""
    inside: NDArray[np.bool_] = probabilities >= 0.5 - _TIE
    return inside


def centres(length: int, size_px: int) -> NDArray[np.int64]:
    """Index of the source pixel under the centre of each of `size_px` target pixels, (size_px,)."""
    return (2 * np.arange(size_px) + 1) * length // (2 * size_px)


def _weights(n: int, small: int) -> NDArray[np.float64]:
    """(n, small): weights of small pixels for each native pixel of an axis; rows sum to 1."""
    samples = centres(n, small)
    if n <= small:  # every native pixel was sampled, some more than once
        weights = (np.arange(n)[:, None] == samples).astype(np.float64)
    else:
        position = np.interp(np.arange(n), samples, np.arange(small))
        d = np.abs(position[:, None] - np.arange(small))
        weights = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6)
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised
