"""Learning rate schedules: the factor of the learning rate by the fraction of a study's rounds that is done."""

import math
from collections.abc import Callable, Mapping

_POWER = 0.9  # nnU-Net's (Isensee et al., Nature Methods 2021)

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * min(done, 1.0))) / 2,
    "poly": lambda done: max(0.0, 1 - done) ** _POWER,
}
