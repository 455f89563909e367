"""What a site says of its images before training: counts, sizes and grey values of many patients, never of few.

The unit is the patient, as the manifest groups cases (a case whose patient is not known is one by itself): each weighs
alike. Behind every number there are at least `min_cases` patients. Values by patient (a structure's size, an image's
sides) are sorted and cut into groups of at least so many, as equal as can be, of which only the mean is told: there is
no least and no largest value, and no count from which the few could be taken that do not show a structure. Grey values
fall into 32 bins, which join until `min_cases` patients have pixels in them.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfms.data.fingerprint import of_several
from fedfms.data.plain import exact, finite, of
from fedfms.data.site import SiteData
from fedfms.data.source import Item
from fedfms.errors import DataError, TooFewError

FORMAT = 1
UNIT = "patient"
MIN_CASES = 5
GREY_BINS = 32
CHANNELS = ("red", "green", "blue")
_MOST_GROUPS = 10
_OF_A_PATIENT = 1_000_000  # what a patient's pixels weigh together, however many there are
_DIGITS = 6
_DAMAGED = "make it again with `fedfms sites STUDY --site NAME`"


@dataclass(frozen=True)
class Spread:
    """Of a value by patient: the means of groups of patients from small to large, the mean of these, and the sample
    s.d. over patients.
    """

    mean: float
    sd: float
    groups: tuple[float, ...]


@dataclass(frozen=True)
class StructureProfile:
    """Of a structure: its share of the image's area, by patient over the images that show it (None: too few show it);
    and the share of images that do not (None: too few patients have such, or others).
    """

    name: str
    area: Spread | None
    empty: float | None


@dataclass(frozen=True)
class Profile:
    """A site's images in numbers; `intensity`: for each of `CHANNELS`, shares of the grey values by bin."""

    format: int
    dataset: str
    site: str
    unit: str
    min_cases: int
    patients: int
    cases: int
    images: int
    slices_per_case: Spread
    height_px: Spread
    width_px: Spread
    intensity: tuple[tuple[float, ...], ...]
    structures: tuple[StructureProfile, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and names: exactly what leaves a site."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, raw: Any) -> Profile:
        """The profile that `raw` describes; it may come from anywhere.

        Raises:
            DataError: an unknown or a missing key, a value of another kind, numbers that do not agree or that tell of
                fewer patients than the profile itself says.
        """
        try:
            made = _parse(exact(raw, cls, "profile"))
        except DataError as error:  # the reader of another file would be sent to a converter
            raise DataError(error.what, where=error.where, do=_DAMAGED) from error
        if not _sound(made):
            raise DataError("its numbers do not agree", where="profile", do=_DAMAGED)
        return made


def profile(data: SiteData, min_cases: int = MIN_CASES) -> Profile:
    """The profile of all of a site's images of the study, at native resolution; every image is decoded once.

    Raises:
        TooFewError: fewer than `min_cases` patients; how many, it does not say.
        DataError: an image that cannot be read.
    """
    items = data.parts["all"]
    patients = sorted({item.patient for item in items})
    if len(patients) < min_cases:
        raise TooFewError(
            f"it has fewer than {min_cases} patients", where=f"site {data.site}", do="nothing is told of so few"
        )
    by_case: dict[tuple[str, str], int] = {}
    for item in items:
        by_case[item.patient, item.case] = by_case.get((item.patient, item.case), 0) + 1
    greys, areas = _read(data, items, patients)

    def spread(values: Sequence[tuple[str, float]]) -> Spread:
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
        slices_per_case=spread([(patient, count) for (patient, _), count in by_case.items()]),
        height_px=spread([(item.patient, item.height_px) for item in items]),
        width_px=spread([(item.patient, item.width_px) for item in items]),
        intensity=tuple(_shares(greys[:, channel], min_cases) for channel in range(len(CHANNELS))),
        structures=tuple(_structure(name, found, min_cases) for name, found in areas.items()),
    )


def _read(
    data: SiteData, items: Sequence[Item], patients: Sequence[str]
) -> tuple[NDArray[np.int64], dict[str, list[tuple[str, float]]]]:
    """Pixels by patient, channel and bin; and of each structure, patient and share of the area by image."""
    row = {patient: index for index, patient in enumerate(patients)}
    greys = np.zeros((len(patients), len(CHANNELS), GREY_BINS), dtype=np.int64)
    areas: dict[str, list[tuple[str, float]]] = {structure.name: [] for structure in data.spec.structures}
    for item in items:
        image, label = data.source.read(item)
        for channel in range(len(CHANNELS)):
            plane = image if image.ndim == 2 else image[..., channel]
            greys[row[item.patient], channel] += np.bincount(
                plane.reshape(-1) // (256 // GREY_BINS), minlength=GREY_BINS
            )
        for structure in data.spec.structures:
            areas[structure.name].append((item.patient, float(np.isin(label, structure.values).mean())))
    return greys, areas


def _spread(values: Sequence[tuple[str, float]], least: int) -> Spread | None:
    """Of (patient, value), several a patient: the mean of each patient's, spread over patients; None of too few."""
    own: dict[str, list[float]] = {}
    for patient, value in values:
        own.setdefault(patient, []).append(value)
    if len(own) < least:
        return None
    means = sorted(statistics.fmean(found) for found in own.values())
    groups = [float(group.mean()) for group in np.array_split(np.array(means), _groups(len(means), least))]
    # The mean over patients would, beside these, tell how many patients there are.
    return Spread(
        mean=_rounded(statistics.fmean(groups)),
        sd=_rounded(statistics.stdev(means)),
        groups=tuple(_rounded(mean) for mean in groups),
    )


def _groups(patients: int, least: int) -> int:
    return min(_MOST_GROUPS, patients // least)


def _structure(name: str, found: Sequence[tuple[str, float]], least: int) -> StructureProfile:
    shown = [(patient, area) for patient, area in found if area > 0]
    empty = {patient for patient, area in found if area == 0}
    few = 0 < len(empty) < least or 0 < len({patient for patient, _ in shown}) < least
    share = None if few else _rounded(1 - len(shown) / len(found))
    return StructureProfile(name, _spread(shown, least), share)


def _shares(pixels: NDArray[np.int64], least: int) -> tuple[float, ...]:
    """Pixels by patient and bin -> shares by bin, that of a patient weighing as another's."""
    parts = np.rint(pixels / pixels.sum(axis=1, keepdims=True) * _OF_A_PATIENT).astype(np.int64)
    joined = np.array(of_several(parts, least), dtype=np.float64)
    return tuple(_rounded(value) for value in (joined / max(joined.sum(), 1)).tolist())


def _rounded(value: float) -> float:
    return round(value, _DIGITS)


def _parse(raw: Mapping[str, Any]) -> Profile:
    kinds = {"format": int, "dataset": str, "site": str, "unit": str, "min_cases": int, "patients": int, "cases": int,
             "images": int}  # fmt: skip
    plain: dict[str, Any] = {key: of(raw[key], kind, f"profile, {key}") for key, kind in kinds.items()}
    return Profile(
        **plain,
        slices_per_case=_parse_spread(raw["slices_per_case"], "slices_per_case"),
        height_px=_parse_spread(raw["height_px"], "height_px"),
        width_px=_parse_spread(raw["width_px"], "width_px"),
        intensity=tuple(
            tuple(finite(share, "profile, intensity") for share in of(channel, list, "profile, intensity"))
            for channel in of(raw["intensity"], list, "profile, intensity")
        ),
        structures=tuple(_parse_structure(found) for found in of(raw["structures"], list, "profile, structures")),
    )


def _parse_structure(raw: Any) -> StructureProfile:
    where = "profile, structures"
    exact(raw, StructureProfile, where)
    return StructureProfile(
        name=of(raw["name"], str, where),
        area=None if raw["area"] is None else _parse_spread(raw["area"], "area"),
        empty=None if raw["empty"] is None else finite(raw["empty"], where),
    )


def _parse_spread(raw: Any, key: str) -> Spread:
    where = f"profile, {key}"
    exact(raw, Spread, where)
    return Spread(
        mean=finite(raw["mean"], where),
        sd=finite(raw["sd"], where),
        groups=tuple(finite(value, where) for value in of(raw["groups"], list, where)),
    )


def _sound(made: Profile) -> bool:
    """Whether the numbers are ones that `profile` could have told."""
    if (made.format, made.unit) != (FORMAT, UNIT) or made.min_cases < 2 or not made.min_cases <= made.patients:
        return False
    if not made.patients <= made.cases <= made.images or not made.structures:
        return False
    if len(made.intensity) != len(CHANNELS) or any(len(shares) != GREY_BINS for shares in made.intensity):
        return False
    for shares in made.intensity:
        total = float(np.sum(shares))
        if min(shares) < 0 or total and abs(total - 1) > GREY_BINS * 10**-_DIGITS:
            return False
    areas = [structure.area for structure in made.structures if structure.area is not None]
    empty = [structure.empty for structure in made.structures if structure.empty is not None]
    whole = [made.slices_per_case, made.height_px, made.width_px]
    most = _groups(made.patients, made.min_cases)
    if any(len(spread.groups) != most for spread in whole):
        return False
    if not all(0 <= share <= 1 for share in [*empty, *(value for area in areas for value in area.groups)]):
        return False
    return all(_sound_spread(spread, most) for spread in (*whole, *areas))


def _sound_spread(spread: Spread, most: int) -> bool:
    values = list(spread.groups)
    if not 1 <= len(values) <= most or values != sorted(values):
        return False
    return values[0] >= 0 and spread.sd >= 0 and abs(statistics.fmean(values) - spread.mean) < 10 ** (1 - _DIGITS)
