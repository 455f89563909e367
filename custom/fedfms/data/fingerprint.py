"""What a site says of its training images for nnU-Net's planning: counts and sums over all of them, never one's own.

Sides are rounded up to whole bins and grey values fall into bins too, the same at every site, so that fingerprints
add up. Bins that few images fill join their neighbours before they leave, so medians, percentiles, mean and s.d. of
the sum are approximate. Spacing is not in it: slices here are squares of pixels.
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
    `LEAST_IMAGES` have counts as the next larger, the largest with as many below it as make them up. So a median is
    approximate and errs to the larger. `grey`: foreground pixels (of any structure) by grey value, in bins of
    `GREY_BIN`; what fewer images have is counted where the mean of it and its neighbours lies, and all is zero where
    fewer have any.
    """

    sites: tuple[str, ...]
    structures: tuple[str, ...]
    images: int
    heights: tuple[tuple[int, int], ...]
    widths: tuple[tuple[int, int], ...]
    grey: tuple[int, ...]

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
        middles = np.arange(_GREY_BINS) * GREY_BIN + (GREY_BIN - 1) / 2  # of whole grey values
        mean = float(np.average(middles, weights=self.grey))
        sd = math.sqrt(np.average((middles - mean) ** 2, weights=self.grey))
        low, high = (float(middles[np.searchsorted(np.cumsum(self.grey), q * pixels)]) for q in (0.005, 0.995))
        return {"pixels": pixels, "mean": mean, "sd": sd, "p0.5": low, "p99.5": high}


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
    greys = np.zeros((len(items), _GREY_BINS), dtype=np.int64)
    for counts, item in zip(greys, items, strict=True):
        image, label = data.source.read(item)
        counts += np.bincount(_grey(image)[np.isin(label, values)] // GREY_BIN, minlength=_GREY_BINS)
    return Fingerprint(
        sites=(data.site,),
        structures=tuple(structure.name for structure in data.spec.structures),
        images=len(items),
        heights=_binned([item.height_px for item in items]),
        widths=_binned([item.width_px for item in items]),
        grey=of_several(greys, LEAST_IMAGES),
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
    )


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.ndim == 2 else np.rint(image.mean(axis=2)).astype(np.uint8)


def of_several(greys: NDArray[np.int64], least: int) -> tuple[int, ...]:
    """Pixels by image and bin (n, bins) -> by bin: bins in a row join until `least` images have pixels in them.

    Their pixels are counted in the bin of their mean: the last of them may be a single image's.
    """
    ends, first = [], 0
    bins = greys.shape[1]
    for end in range(1, bins + 1):
        if np.count_nonzero(greys[:, first:end].any(axis=1)) >= least:
            ends.append(end)
            first = end
    joined = [0] * bins
    first = 0
    for end in [*ends[:-1], bins] if ends else []:  # what is left over joins the last
        pixels = greys[:, first:end].sum(axis=0)
        joined[round(np.average(np.arange(first, end), weights=pixels))] = int(pixels.sum())
        first = end
    return tuple(joined)


def _binned(sides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Images by side, none of whose counts is below `LEAST_IMAGES`: few wait for the next larger.

    If the largest are few, the next smaller make them up; where too few of those would be left, all of them go along.
    """
    exact = Counter(math.ceil(side / SIDE_BIN_PX) * SIDE_BIN_PX for side in sides)
    kept: list[tuple[int, int]] = []
    waiting = 0
    for side in sorted(exact):
        waiting += exact[side]
        if waiting >= LEAST_IMAGES:
            kept.append((side, waiting))
            waiting = 0
    if waiting:
        below, count = kept.pop()
        left = count + waiting - LEAST_IMAGES
        if left >= LEAST_IMAGES:
            kept.append((below, left))
        kept.append((max(exact), LEAST_IMAGES if left >= LEAST_IMAGES else count + waiting))
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
    numbers = [values["images"], *values["grey"], *sides]
    if not all(type(number) is int and number >= 0 for number in numbers) or min(sides, default=0) < 1:
        return False
    if any(list(some) != sorted(some) for some in pairs):
        return False
    counts = [count for some in pairs for _, count in some]
    if min([*counts, *filter(None, values["grey"])]) < LEAST_IMAGES:
        return False
    return all(sum(count for _, count in some) == values["images"] for some in pairs)


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
