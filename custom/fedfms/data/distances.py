"""Distances between sites' profiles: of their grey values and of their structures' sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from fedfms.data.profile import Profile, Spread
from fedfms.errors import DataError

FORMAT = 1
Matrix = list[list[float | None]]


def compare(profiles: Sequence[Profile]) -> dict[str, Any]:
    """The profiles and the distances between them, as plain data for JSON, sites in order of name.

    "intensity": Jensen-Shannon distance (base 2, in 0..1) of the grey values, mean over three channels. "area": for
    each structure, the Wasserstein distance of its share of the image's area by patient; None if a site suppresses it.

    Raises:
        DataError: no profile, a site twice, or different data sets or structures.
    """
    ordered = sorted(profiles, key=lambda found: found.site)
    sites = [found.site for found in ordered]
    if not ordered or len(set(sites)) != len(sites):
        raise DataError("one profile per site is needed", where="sites", do="name the file of each site once")
    names = [tuple(structure.name for structure in found.structures) for found in ordered]
    if len({(found.dataset, own) for found, own in zip(ordered, names, strict=True)}) > 1:
        what = "the profiles are of different data sets or structures"
        raise DataError(what, where="sites", do="make all of them from one study")
    areas = {name: [found.structures[index].area for found in ordered] for index, name in enumerate(names[0])}
    return {
        "format": FORMAT,
        "dataset": ordered[0].dataset,
        "unit": ordered[0].unit,
        "min_cases": min(found.min_cases for found in ordered),
        "sites": [found.to_dict() for found in ordered],
        "distances": {
            "sites": sites,
            "intensity": _matrix([found.intensity for found in ordered], _intensity_distance),
            "area": {name: _matrix(own, _area_distance) for name, own in areas.items()},
        },
    }


def _matrix(values: Sequence[Any], distance: Callable[[Any, Any], float | None]) -> Matrix:
    return [[distance(one, other) for other in values] for one in values]


def _intensity_distance(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float | None:
    pairs = list(zip(one, other, strict=True))
    if not all(sum(shares) for pair in pairs for shares in pair):
        return None
    return round(float(np.mean([jensenshannon(a, b, base=2) for a, b in pairs])), 6)


def _area_distance(one: Spread | None, other: Spread | None) -> float | None:
    if one is None or other is None:
        return None
    return round(float(wasserstein_distance(one.groups, other.groups)), 6)
