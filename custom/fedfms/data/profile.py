"""A site's profile before training: counts, sizes and grey values, each over at least `min_cases` patients.

The unit is the patient, as the manifest groups cases (a case with unknown patient is its own patient); patients have
equal weight. Values by patient (a structure's size, an image's sides) are sorted and cut into groups of `min_cases` or
more, as equal as possible, and only the mean of each group is reported. So no minimum or maximum leaves the site, and
no count from which the few patients that do not show a structure could be derived. Grey values fall into 32 bins,
which are merged until `min_cases` patients have pixels in each.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedfms.data.fingerprint import merge_small_bins
from fedfms.data.site import SiteData
from fedfms.data.source import Item
from fedfms.errors import DataError, TooFewError
from fedfms.schema import STRICT, parse, to_plain

FORMAT: Literal[1] = 1
UNIT: Literal["patient"] = "patient"
MIN_CASES = 5
GREY_BINS = 32
CHANNELS = ("red", "green", "blue")
_MAX_GROUPS = 10
_PATIENT_WEIGHT = 1_000_000  # of a patient's pixels together, however many there are
_DIGITS = 6
_DAMAGED = "make it again with `fedfms sites STUDY --site NAME`"

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, ...], Field(min_length=GREY_BINS, max_length=GREY_BINS)]


@dataclass(frozen=True, config=STRICT)
class Spread:
    """Distribution of a value over patients."""

    mean: Size
    """Of the groups' means."""
    sd: Size
    """Sample s.d. over patients."""
    groups: Annotated[tuple[Size, ...], Field(min_length=1)]
    """Means of groups of patients, ascending."""

    def __post_init__(self) -> None:
        if list(self.groups) != sorted(self.groups):
            raise _disagree("the means of groups are not sorted")
        if abs(statistics.fmean(self.groups) - self.mean) >= 10 ** (1 - _DIGITS):
            raise _disagree("a mean is not that of its groups")


@dataclass(frozen=True, config=STRICT)
class StructureProfile:
    """Size of a structure, and how many images show it."""

    name: str
    area: Spread | None
    """Share of the image's area by patient, over the images that show it; None: too few patients show it."""
    empty: Share | None
    """Share of images that do not show it; None: too few patients have such images, or too few have others."""


@dataclass(frozen=True, config=STRICT)
class Profile:
    """A site's images in numbers."""

    format: Literal[1]
    dataset: str
    site: str
    unit: Literal["patient"]
    min_cases: Annotated[int, Field(ge=2)]
    patients: int
    cases: int
    images: int
    slices_per_case: Spread
    height_px: Spread
    width_px: Spread
    intensity: Annotated[tuple[Shares, ...], Field(min_length=len(CHANNELS), max_length=len(CHANNELS))]
    """For each of `CHANNELS`, shares of the grey values by bin."""
    structures: Annotated[tuple[StructureProfile, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if not self.min_cases <= self.patients <= self.cases <= self.images:
            raise _disagree("the counts of patients, cases and images contradict each other")
        for shares in self.intensity:
            total = float(np.sum(shares))
            if total and abs(total - 1) > GREY_BINS * 10**-_DIGITS:
                raise _disagree("the shares of grey values do not add up to 1")
        groups = _group_count(self.patients, self.min_cases)
        if any(len(spread.groups) != groups for spread in (self.slices_per_case, self.height_px, self.width_px)):
            raise _disagree("the number of groups is not that of the patients")
        areas = [structure.area.groups for structure in self.structures if structure.area is not None]
        if any(len(area) > groups or area[-1] > 1 for area in areas):
            raise _disagree("an area is larger than the image, or of more groups than there are patients")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and names: exactly what leaves a site."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, raw: Any) -> Profile:
        """The profile that `raw` describes, which may come from any source.

        Raises:
            DataError: an unknown or missing key, a value of another type, numbers that contradict each other or that
                are of fewer patients than the profile's own `min_cases`.
        """
        return parse(cls, raw, DataError, do=_DAMAGED, key="profile", machine_written=True)


def _disagree(what: str) -> DataError:
    return DataError(what, where="profile", do=_DAMAGED)


def profile(data: SiteData, min_cases: int = MIN_CASES) -> Profile:
    """The profile of all of a site's images of the study, at native resolution; every image is decoded once.

    Raises:
        TooFewError: fewer than `min_cases` patients; the error does not state how many.
        DataError: an image that cannot be read.
    """
    items = data.parts["all"]
    patients = sorted({item.patient for item in items})
    if len(patients) < min_cases:
        raise TooFewError(f"it has fewer than {min_cases} patients, too few to report", where=f"site {data.site}")
    by_case: dict[tuple[str, str], int] = {}
    for item in items:
        by_case[item.patient, item.case] = by_case.get((item.patient, item.case), 0) + 1
    greys, areas = _read(data, items, patients)

    def spread(values: Iterable[tuple[str, float]]) -> Spread:
        made = _spread(values, min_cases)
        assert made is not None  # there are enough patients
        return made

    return Profile(
        format=FORMAT,
        dataset=data.spec.dataset,
        site=data.site,
        unit=UNIT,
        min_cases=min_cases,
        patients=len(patients),
        cases=len(by_case),
        images=len(items),
        slices_per_case=spread((patient, count) for (patient, _), count in by_case.items()),
        height_px=spread((item.patient, item.height_px) for item in items),
        width_px=spread((item.patient, item.width_px) for item in items),
        intensity=tuple(_shares(greys[:, channel], min_cases) for channel in range(len(CHANNELS))),
        structures=tuple(_structure(name, found, min_cases) for name, found in areas.items()),
    )


def _read(
    data: SiteData, items: Sequence[Item], patients: Sequence[str]
) -> tuple[NDArray[np.int64], dict[str, list[tuple[str, float]]]]:
    """Pixel counts by patient, channel and bin; and for each structure, (patient, share of the area) by image."""
    row = {patient: index for index, patient in enumerate(patients)}
    greys = np.zeros((len(patients), len(CHANNELS), GREY_BINS), dtype=np.int64)
    areas: dict[str, list[tuple[str, float]]] = {structure.name: [] for structure in data.spec.structures}
    for item in items:
        image, label = data.source.read(item)
        for channel in range(len(CHANNELS)):
            plane = image if image.ndim == 2 else image[..., channel]
            bins = plane.reshape(-1) // (256 // GREY_BINS)
            greys[row[item.patient], channel] += np.bincount(bins, minlength=GREY_BINS)
        for structure in data.spec.structures:
            areas[structure.name].append((item.patient, float(np.isin(label, structure.values).mean())))
    return greys, areas


def _spread(values: Iterable[tuple[str, float]], min_cases: int) -> Spread | None:
    """The distribution over patients of each patient's mean, from (patient, value); None for too few patients."""
    by_patient: dict[str, list[float]] = {}
    for patient, value in values:
        by_patient.setdefault(patient, []).append(value)
    if len(by_patient) < min_cases:
        return None
    means = sorted(statistics.fmean(found) for found in by_patient.values())
    groups = [float(group.mean()) for group in np.array_split(means, _group_count(len(means), min_cases))]
    # Together with the groups, the mean over patients would reveal the number of patients.
    return Spread(
        mean=_rounded(statistics.fmean(groups)),
        sd=_rounded(statistics.stdev(means)),
        groups=tuple(_rounded(mean) for mean in groups),
    )


def _group_count(patients: int, min_cases: int) -> int:
    return min(_MAX_GROUPS, patients // min_cases)


def _structure(name: str, found: Sequence[tuple[str, float]], min_cases: int) -> StructureProfile:
    shown = [(patient, area) for patient, area in found if area > 0]
    without = {patient for patient, area in found if area == 0}
    few = 0 < len(without) < min_cases or 0 < len({patient for patient, _ in shown}) < min_cases
    return StructureProfile(
        name, area=_spread(shown, min_cases), empty=None if few else _rounded(1 - len(shown) / len(found))
    )


def _shares(pixels: NDArray[np.int64], min_cases: int) -> tuple[float, ...]:
    """Pixel counts by patient and bin -> shares by bin; each patient has the same weight."""
    parts = np.rint(pixels / pixels.sum(axis=1, keepdims=True) * _PATIENT_WEIGHT).astype(np.int64)
    merged = np.array(merge_small_bins(parts, min_cases), dtype=np.float64)
    return tuple(_rounded(value) for value in (merged / max(merged.sum(), 1)).tolist())


def _rounded(value: float) -> float:
    return round(value, _DIGITS)
