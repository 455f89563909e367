"""A site's fingerprint for nnU-Net's planning: counts and sums over its training images, never of a single image.

Image sides and grey values fall into bins that are the same at every site, so fingerprints can be added up. Bins that
few images fill are merged with their neighbours before they leave the site, so medians, percentiles, mean and s.d. of
the sum are approximate. There is no spacing in it: slices here are squares of pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedfms.data.site import SiteData
from fedfms.errors import DataError
from fedfms.schema import STRICT, parse, to_plain

MIN_IMAGES = 5  # behind any number that leaves a site
SIDE_BIN_PX = 32
GREY_BIN = 4  # grey values per bin
_GREY_BINS = 256 // GREY_BIN
_DAMAGED = "make it again with `fedfms fingerprint`"

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Bin = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(ge=MIN_IMAGES)]]  # side in pixels, images
Histogram = tuple[Bin, ...]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Fingerprint:
    """Sums over the training images of one or more sites."""

    sites: Names
    structures: Names
    images: int
    heights: Histogram
    """Images by height, rounded up to `SIDE_BIN_PX`.

    A side that fewer than `MIN_IMAGES` images have counts as the next larger one, and the largest takes as many images
    from below as it lacks. So a median is approximate and errs to the larger side.
    """
    widths: Histogram
    """Likewise by width."""
    grey: Annotated[tuple[Count, ...], Field(min_length=_GREY_BINS, max_length=_GREY_BINS)]
    """Foreground pixels (of any structure) by grey value, in bins of `GREY_BIN`: see `merge_small_bins`."""

    def __post_init__(self) -> None:
        for histogram in (self.heights, self.widths):
            if list(histogram) != sorted(histogram) or sum(count for _, count in histogram) != self.images:
                raise DataError("its counts contradict each other", where="fingerprint", do=_DAMAGED)
        if any(0 < pixels < MIN_IMAGES for pixels in self.grey):
            raise DataError(f"it reports fewer than {MIN_IMAGES} images", where="fingerprint", do=_DAMAGED)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and names: exactly what leaves a site."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint that `raw` describes, which may come from any source.

        Raises:
            DataError: an unknown or missing key, a value of another type, or counts that contradict each other.
        """
        return parse(cls, raw, DataError, do=_DAMAGED, key="fingerprint", machine_written=True)

    def side(self, axis: Literal["heights", "widths"], share: float) -> int:
        """The side in pixels that `share` of the images do not exceed."""
        counts: Histogram = getattr(self, axis)
        reached = np.cumsum([count for _, count in counts])
        return counts[int(np.searchsorted(reached, share * self.images))][0]

    def summary(self) -> dict[str, Any]:
        """Medians, percentiles, mean and s.d., in the terms of nnU-Net's own fingerprint."""
        shapes = {
            f"{axis}_px": {f"p{round(100 * q)}": self.side(axis, q) for q in (0.05, 0.5, 0.95)}
            for axis in ("heights", "widths")
        }
        return {"sites": list(self.sites), "images": self.images, **shapes, "foreground": self._foreground()}

    def _foreground(self) -> dict[str, float] | None:
        pixels = sum(self.grey)
        if not pixels:
            return None
        middles = np.arange(_GREY_BINS) * GREY_BIN + (GREY_BIN - 1) / 2
        mean = float(np.average(middles, weights=self.grey))
        sd = math.sqrt(np.average((middles - mean) ** 2, weights=self.grey))
        low, high = (float(middles[np.searchsorted(np.cumsum(self.grey), q * pixels)]) for q in (0.005, 0.995))
        return {"pixels": pixels, "mean": mean, "sd": sd, "p0.5": low, "p99.5": high}


def fingerprint(data: SiteData) -> Fingerprint:
    """The fingerprint of a site's training images at native resolution; a colour counts as the mean of its channels.

    Raises:
        DataError: fewer than `MIN_IMAGES` of them, or one that cannot be read.
    """
    items = data.parts["train"]
    if len(items) < MIN_IMAGES:
        raise DataError(
            f"there are {len(items)} training images, a fingerprint needs {MIN_IMAGES}", where=f"site {data.site}"
        )
    values = [value for structure in data.spec.structures for value in structure.values]
    greys = np.zeros((len(items), _GREY_BINS), dtype=np.int64)
    for counts, item in zip(greys, items, strict=True):
        image, label = data.source.read(item)
        counts += np.bincount(_grey(image)[np.isin(label, values)] // GREY_BIN, minlength=_GREY_BINS)
    return Fingerprint(
        sites=(data.site,),
        structures=tuple(structure.name for structure in data.spec.structures),
        images=len(items),
        heights=_histogram([item.height_px for item in items]),
        widths=_histogram([item.width_px for item in items]),
        grey=merge_small_bins(greys, MIN_IMAGES),
    )


def merge(parts: Sequence[Fingerprint]) -> Fingerprint:
    """The fingerprint of all sites together: sums that do not depend on the order of `parts`.

    Raises:
        DataError: no fingerprint, a site twice, or fingerprints of different structures.
    """
    sites = sorted(site for part in parts for site in part.sites)
    if not parts or len(set(sites)) != len(sites):
        raise DataError("one fingerprint per site is needed", where="plan", do="name the file of each site once")
    if len({part.structures for part in parts}) > 1:
        raise DataError(
            "the fingerprints are of different structures", where="plan", do="make all of them from one study"
        )
    return Fingerprint(
        sites=tuple(sites),
        structures=parts[0].structures,
        images=sum(part.images for part in parts),
        heights=_sum([part.heights for part in parts]),
        widths=_sum([part.widths for part in parts]),
        grey=tuple(sum(counts) for counts in zip(*(part.grey for part in parts), strict=True)),
    )


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.ndim == 2 else np.rint(image.mean(axis=2)).astype(np.uint8)


def merge_small_bins(counts: NDArray[np.int64], min_cases: int) -> tuple[int, ...]:
    """Pixel counts by image and bin (n, bins) -> by bin; neighbours are merged until `min_cases` images have pixels.

    The pixels of merged bins are counted in the bin of their mean: the outermost may be those of a single image. All
    counts are zero where fewer than `min_cases` images have any pixels.
    """
    ends, first = [], 0
    bins = counts.shape[1]
    for end in range(1, bins + 1):
        if np.count_nonzero(counts[:, first:end].any(axis=1)) >= min_cases:
            ends.append(end)
            first = end
    merged = [0] * bins
    first = 0
    for end in [*ends[:-1], bins] if ends else []:  # the last group also takes the bins after it
        pixels = counts[:, first:end].sum(axis=0)
        merged[round(np.average(np.arange(first, end), weights=pixels))] = int(pixels.sum())
        first = end
    return tuple(merged)


def _histogram(sides: Sequence[int]) -> Histogram:
    """Images by side, no count below `MIN_IMAGES`: smaller counts are added to the next larger side.

    Where the largest sides are too few, images of the next smaller side join them; if too few of those would remain,
    all of them do.
    """
    exact = Counter(math.ceil(side / SIDE_BIN_PX) * SIDE_BIN_PX for side in sides)
    bins: list[tuple[int, int]] = []
    pending = 0
    for side in sorted(exact):
        pending += exact[side]
        if pending >= MIN_IMAGES:
            bins.append((side, pending))
            pending = 0
    if pending:
        below, count = bins.pop()
        remaining = count + pending - MIN_IMAGES
        if remaining >= MIN_IMAGES:
            bins.append((below, remaining))
        bins.append((max(exact), MIN_IMAGES if remaining >= MIN_IMAGES else count + pending))
    return tuple(bins)


def _sum(histograms: Sequence[Histogram]) -> Histogram:
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(dict(histogram))
    return tuple(sorted(total.items()))
