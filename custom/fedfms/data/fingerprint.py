"""What a site says of its training images for nnU-Net's planning: counts and sums over all of them, never one's own.

Sides are rounded up to whole bins and grey values fall into bins too, the same at every site, so that fingerprints
add up; medians and percentiles of the sum are exact to a bin. Spacing is not in it: slices here are squares of pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfms.data.site import SiteData
from fedfms.errors import DataError

LEAST_IMAGES = 5  # behind any number that leaves a site
SIDE_BIN_PX = 32
GREY_BIN = 4  # of 256 grey values
_GREY_BINS = 256 // GREY_BIN
_DAMAGED = "make it again with `fedfms fingerprint`"


@dataclass(frozen=True)
class Fingerprint:
    """Sums over the training images of one or more sites.

    `heights`, `widths`: images by side in pixels, rounded up to `SIDE_BIN_PX`, as pairs; a side that fewer than
    `LEAST_IMAGES` have counts as the next larger. `grey`: foreground pixels (of any structure) by grey value, in bins
    of `GREY_BIN`; all zero where fewer images have any.
    """

    sites: tuple[str, ...]
    structures: tuple[str, ...]
    images: int
    heights: tuple[tuple[int, int], ...]
    widths: tuple[tuple[int, int], ...]
    grey: tuple[int, ...]
    grey_sum: int
    grey_squares: int

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and names: exactly what leaves a site."""
        return {k: _lists(v) for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint that `raw` describes; it may come from anywhere.

        Raises:
            DataError: an unknown or a missing key, a number that is none, or counts that do not agree.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(raw, Mapping) or set(raw) != names:
            raise DataError("this is no fingerprint", where="fingerprint", do=_DAMAGED)
        values: dict[str, Any] = {k: _tuples(v) for k, v in raw.items()}
        if not _sound(values):
            raise DataError("its numbers do not agree", where="fingerprint", do=_DAMAGED)
        return cls(**values)

    def side(self, axis: str, share: float) -> int:
        """The side in pixels that `share` of the images do not exceed; `axis`: "heights" or "widths"."""
        counts: tuple[tuple[int, int], ...] = getattr(self, axis)
        reached = np.cumsum([count for _, count in counts])
        return counts[int(np.searchsorted(reached, share * self.images))][0]

    def summary(self) -> dict[str, Any]:
        """What a person, and nnU-Net's own fingerprint, would call it: medians, percentiles, mean and s.d."""
        shapes = {
            f"{axis}_px": {f"p{round(100 * q)}": self.side(axis, q) for q in (0.05, 0.5, 0.95)}
            for axis in ("heights", "widths")
        }
        return {"sites": list(self.sites), "images": self.images, **shapes, "foreground": self._foreground()}

    def _foreground(self) -> dict[str, float] | None:
        pixels = sum(self.grey)
        if not pixels:
            return None
        mean = self.grey_sum / pixels
        reached = np.cumsum(self.grey)
        middle = {q: int(np.searchsorted(reached, q * pixels)) * GREY_BIN + GREY_BIN / 2 for q in (0.005, 0.995)}
        sd = math.sqrt(max(self.grey_squares / pixels - mean**2, 0.0))
        return {"pixels": pixels, "mean": mean, "sd": sd, "p0.5": middle[0.005], "p99.5": middle[0.995]}


def fingerprint(data: SiteData) -> Fingerprint:
    """The fingerprint of a site's training images, at native resolution; colours as the mean of their channels.

    Raises:
        DataError: fewer than `LEAST_IMAGES` of them, or one that cannot be read.
    """
    items = data.parts["train"]
    if len(items) < LEAST_IMAGES:
        raise DataError(
            f"there are {len(items)} training images", where=f"site {data.site}",
            do=f"a fingerprint takes {LEAST_IMAGES}, or it would speak of single ones",
        )  # fmt: skip
    values = [value for structure in data.spec.structures for value in structure.values]
    greys, with_foreground = np.zeros(256, dtype=np.int64), 0
    for item in items:
        image, label = data.source.read(item)
        found = _grey(image)[np.isin(label, values)]
        greys += np.bincount(found, minlength=256)
        with_foreground += bool(found.size)
    if with_foreground < LEAST_IMAGES:
        greys[:] = 0
    levels = np.arange(256)
    return Fingerprint(
        sites=(data.site,),
        structures=tuple(structure.name for structure in data.spec.structures),
        images=len(items),
        heights=_binned([item.height_px for item in items]),
        widths=_binned([item.width_px for item in items]),
        grey=tuple(greys.reshape(_GREY_BINS, GREY_BIN).sum(axis=1).tolist()),
        grey_sum=int(greys @ levels),
        grey_squares=int(greys @ levels**2),
    )


def merge(parts: Sequence[Fingerprint]) -> Fingerprint:
    """The fingerprint of all sites together: sums, whatever the order of `parts`.

    Raises:
        DataError: none at all, a site twice, or sites of other structures.
    """
    sites = sorted(site for part in parts for site in part.sites)
    if not parts or len(set(sites)) != len(sites):
        raise DataError("fingerprints of one site each are needed", where="plan", do="name the file of each once")
    if len({part.structures for part in parts}) > 1:
        raise DataError("the fingerprints are of other structures", where="plan", do="make all of one study")
    return Fingerprint(
        sites=tuple(sites),
        structures=parts[0].structures,
        images=sum(part.images for part in parts),
        heights=_added([part.heights for part in parts]),
        widths=_added([part.widths for part in parts]),
        grey=tuple(sum(counts) for counts in zip(*(part.grey for part in parts), strict=True)),
        grey_sum=sum(part.grey_sum for part in parts),
        grey_squares=sum(part.grey_squares for part in parts),
    )


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.ndim == 2 else np.rint(image.mean(axis=2)).astype(np.uint8)


def _binned(sides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Images by side, none of whose counts is below `LEAST_IMAGES`: few wait for the next larger, or for the last."""
    exact = Counter(math.ceil(side / SIDE_BIN_PX) * SIDE_BIN_PX for side in sides)
    kept: list[tuple[int, int]] = []
    waiting = 0
    for side in sorted(exact):
        waiting += exact[side]
        if waiting >= LEAST_IMAGES:
            kept.append((side, waiting))
            waiting = 0
    if waiting:
        side, count = kept[-1]
        kept[-1] = side, count + waiting
    return tuple(kept)


def _added(histograms: Sequence[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, int], ...]:
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(dict(histogram))
    return tuple(sorted(total.items()))


def _sound(values: Mapping[str, Any]) -> bool:
    """Whether the values have the types of a fingerprint, and its counts add up."""
    names = [values["sites"], values["structures"]]
    if not all(isinstance(some, tuple) and some and all(isinstance(n, str) for n in some) for some in names):
        return False
    pairs = [values["heights"], values["widths"]]
    if not all(isinstance(some, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in some) for some in pairs):
        return False
    if not isinstance(values["grey"], tuple) or len(values["grey"]) != _GREY_BINS:
        return False
    sides = [number for some in pairs for pair in some for number in pair]
    numbers = [values["images"], values["grey_sum"], values["grey_squares"], *values["grey"], *sides]
    if not all(type(number) is int and number >= 0 for number in numbers) or min(sides, default=0) < 1:
        return False
    if values["grey_sum"] > 255 * sum(values["grey"]) or any(list(some) != sorted(some) for some in pairs):
        return False
    return all(sum(count for _, count in some) == values["images"] >= LEAST_IMAGES for some in pairs)


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
