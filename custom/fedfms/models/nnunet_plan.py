"""nnU-Net's published rules (Isensee et al., Nature Methods 2021; the numbers are its version 2's) for 2D networks.

Data enter this project as squares of `model.input_px`, so the rules for anisotropic pixels never bite: every stage
has a 3 x 3 kernel, and every stage but the first a stride of 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedfms.errors import StudyError

_LEAST_EDGE_PX = 4  # of the lowest feature map
_CONVOLUTIONS = 2  # a stage
_REFERENCE_VALUES = 85_000_000  # of all feature maps of one image: what 8 GB of GPU memory hold 12 of
_REFERENCE_BATCH = 12
_LEAST_BATCH = 2
_LARGEST_SHARE = 0.05  # of all training pixels, in a batch
_LARGEST_START_PX = 2048


@dataclass(frozen=True)
class Plan:
    """A 2D nnU-Net: input size, and for each stage from the full resolution down its channels, kernel and stride.

    `batch_size` is what the rules suggest; a run takes the study's.
    """

    input_px: int
    features: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    batch_size: int

    def __post_init__(self) -> None:
        stages = len(self.features)
        reduction = math.prod(self.strides)
        same = stages == len(self.kernels) == len(self.strides)
        whole = min(self.input_px, self.batch_size, *self.features, *self.kernels, *self.strides) > 0
        if stages < 3 or not same or not whole or self.strides[0] != 1 or any(k % 2 == 0 for k in self.kernels):
            raise StudyError("the plan is no plan of ours", where="nnU-Net", do="make it with `fedfms plan`")
        if self.input_px % reduction or self.input_px // reduction < 2:
            raise StudyError(
                f"input_px {self.input_px} cannot be reduced {reduction} times", where="nnU-Net",
                do=f"a multiple of {reduction}, as {padded(self.input_px)}",
            )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists; `from_dict` is its inverse."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Plan:
        """The plan that `raw` describes.

        Raises:
            StudyError: an unknown or a missing key, or values that make no network.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(raw) != names:
            raise StudyError(
                f"a plan has the keys {sorted(names)}, not {sorted(map(str, raw))}", where="nnU-Net",
                do="make it with `fedfms plan`",
            )  # fmt: skip
        numbers = [n for value in raw.values() for n in (value if isinstance(value, list) else [value])]
        lists = {name for name, value in raw.items() if isinstance(value, list)}
        if lists != {"features", "kernels", "strides"} or not all(type(n) is int for n in numbers):
            raise StudyError("a plan holds whole numbers", where="nnU-Net", do="make it with `fedfms plan`")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
        return cls(**values)


def halvings(px: int) -> int:
    """How often a side is halved: as long as what is left is at least twice the least edge."""
    count, left = 0, float(px)
    while left >= 2 * _LEAST_EDGE_PX:
        count, left = count + 1, left / 2
    return count


def padded(px: int) -> int:
    """The next side that all its halvings divide."""
    unit = 2 ** halvings(px)
    return math.ceil(px / unit) * unit


def plan_at(
    input_px: int, n_structures: int, *, pixels: float = math.inf, base_features: int = 32, most_features: int = 512
) -> Plan:
    """The network for squares of `input_px`; `pixels` of all training images bound the suggested batch.

    Raises:
        StudyError: a side that its halvings do not divide.
    """
    stages = halvings(input_px) + 1
    features = tuple(min(base_features * 2**stage, most_features) for stage in range(stages))
    batch = round(_REFERENCE_VALUES / feature_values(input_px, features, n_structures) * _REFERENCE_BATCH)
    covered = pixels * _LARGEST_SHARE / input_px**2
    batch = max(batch if math.isinf(covered) else min(batch, round(covered)), _LEAST_BATCH)
    return Plan(input_px, features, (3,) * stages, (1, *(2,) * (stages - 1)), batch)


def plan_for(height_px: float, width_px: float, images: int, n_structures: int) -> Plan:
    """The plan for images of this median size: a square of as many pixels, made smaller until it fits in memory."""
    side = padded(min(round(math.sqrt(height_px * width_px)), _LARGEST_START_PX))
    pixels = images * height_px * width_px
    while True:
        plan = plan_at(side, n_structures, pixels=pixels)
        if feature_values(side, plan.features, n_structures) <= _REFERENCE_VALUES:
            return plan
        side = padded(side - math.prod(plan.strides))


def feature_values(input_px: int, features: tuple[int, ...], n_structures: int) -> int:
    """Values in all feature maps of one image: nnU-Net's measure of memory.

    A stage down has its convolutions; a stage up the transposed convolution, as many again, and the logits.
    """
    areas = [(input_px // 2**stage) ** 2 for stage in range(len(features))]
    down = sum(_CONVOLUTIONS * channels * area for channels, area in zip(features, areas, strict=True))
    up = [(1 + _CONVOLUTIONS) * channels + n_structures for channels in features[:-1]]
    return down + sum(values * area for values, area in zip(up, areas[:-1], strict=True))
