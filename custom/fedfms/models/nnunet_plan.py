"""nnU-Net's published planning rules for 2D networks (Isensee et al., Nature Methods 2021; numbers of its version 2).

Images enter as squares of `model.input_px`, so the rules for anisotropic pixels do not apply: every stage has a 3 x 3
kernel, and every stage but the first a stride of 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedfms.errors import StudyError
from fedfms.schema import STRICT, parse, to_plain

_MIN_EDGE_PX = 4  # of the lowest feature map
_CONVOLUTIONS = 2  # per stage
_REFERENCE_VALUES = 85_000_000  # in all feature maps of one image, at which 8 GB of GPU memory hold a batch of 12
_REFERENCE_BATCH = 12
_MIN_BATCH = 2
_MAX_BATCH_SHARE = 0.05  # of all training pixels
_MAX_START_PX = 2048
_WHERE, _DO = "nnU-Net", "make the plan with `fedfms plan`"  # for errors

Count = Annotated[int, Field(gt=0)]
Counts = Annotated[tuple[Count, ...], Field(min_length=3)]  # by stage, from the full resolution down


@dataclass(frozen=True, config=STRICT)
class Plan:
    """Layout of a 2D nnU-Net."""

    input_px: Count
    features: Counts
    """Channels of each stage."""
    kernels: Counts
    strides: Counts
    batch_size: Count
    """A suggestion of the rules; a run uses the study's."""

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.kernels) == len(self.strides):
            raise StudyError("features, kernels and strides must be of the same length", where=_WHERE, do=_DO)
        if self.strides[0] != 1 or any(kernel % 2 == 0 for kernel in self.kernels):
            raise StudyError("the first stride must be 1, and kernels must be odd", where=_WHERE, do=_DO)
        reduction = math.prod(self.strides)
        if self.input_px % reduction or self.input_px // reduction < 2:
            raise StudyError(
                f"input_px {self.input_px} cannot be reduced {reduction} times", where=_WHERE,
                do=f"a multiple of {reduction}, as {padded(self.input_px)}",
            )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists; `from_dict` is its inverse."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Plan:
        """The plan that `raw` describes.

        Raises:
            StudyError: an unknown or missing key, or values that give no network.
        """
        return parse(cls, raw, StudyError, where=_WHERE, do=_DO, key="plan")


def halvings(px: int) -> int:
    """How often a side can be halved before it is shorter than the minimum edge."""
    count, side = 0, float(px)
    while side >= 2 * _MIN_EDGE_PX:
        count, side = count + 1, side / 2
    return count


def padded(px: int) -> int:
    """The smallest side of at least `px` that all its halvings divide."""
    unit = 2 ** halvings(px)
    return math.ceil(px / unit) * unit


def plan_at(
    input_px: int, n_structures: int, *, pixels: float = math.inf, base_features: int = 32, max_features: int = 512
) -> Plan:
    """The plan for squares of `input_px`; the `pixels` of all training images limit the suggested batch size.

    Raises:
        StudyError: a side that its halvings do not divide.
    """
    stages = halvings(input_px) + 1
    features = tuple(min(base_features * 2**stage, max_features) for stage in range(stages))
    batch = round(_REFERENCE_VALUES / feature_values(input_px, features, n_structures) * _REFERENCE_BATCH)
    limit = pixels * _MAX_BATCH_SHARE / input_px**2
    batch = max(batch if math.isinf(limit) else min(batch, round(limit)), _MIN_BATCH)
    return Plan(input_px, features, (3,) * stages, (1, *(2,) * (stages - 1)), batch)


def plan_for(height_px: float, width_px: float, images: int, n_structures: int) -> Plan:
    """The plan for images of this median size: a square with that number of pixels, reduced until it fits in memory."""
    side = padded(min(round(math.sqrt(height_px * width_px)), _MAX_START_PX))
    pixels = images * height_px * width_px
    while True:
        plan = plan_at(side, n_structures, pixels=pixels)
        if feature_values(side, plan.features, n_structures) <= _REFERENCE_VALUES:
            return plan
        side = padded(side - math.prod(plan.strides))


def feature_values(input_px: int, features: tuple[int, ...], n_structures: int) -> int:
    """Number of values in all feature maps of one image: nnU-Net's estimate of memory.

    A stage of the encoder has the convolutions; one of the decoder the transposed convolution, the convolutions and
    the logits.
    """
    areas = [(input_px // 2**stage) ** 2 for stage in range(len(features))]
    down = sum(_CONVOLUTIONS * channels * area for channels, area in zip(features, areas, strict=True))
    up = [(1 + _CONVOLUTIONS) * channels + n_structures for channels in features[:-1]]
    return down + sum(values * area for values, area in zip(up, areas[:-1], strict=True))
