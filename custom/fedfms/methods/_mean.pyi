import numpy as np

def weighted(out: np.ndarray, parts: tuple[np.ndarray, ...], weights: np.ndarray, by: float) -> None:
    """out = sum_i weights[i] parts[i] / by, in float64 and in the order given; other threads run meanwhile.

    Args:
        out: float32, C-contiguous; written to.
        parts: float32 arrays, C-contiguous, of the same size.
        weights: float64, one a part.

    Raises:
        ValueError: another type or length, or not contiguous.
        BufferError: as ValueError; `out` is read-only.
        TypeError: `parts` is no tuple, or an array is none.
    """
