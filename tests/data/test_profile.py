"""Profiles of sites: computed by hand, of few patients, untrusted; no number is of fewer than min_cases patients."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.data.distances import compare
from fedfms.data.profile import GREY_BINS, Profile, profile
from fedfms.data.site import SiteData
from fedfms.data.source import Item, MemorySource
from fedfms.errors import DataError, TooFewError
from fedfms.study import DataSpec, Structure

SPEC = DataSpec(dataset="eyes", structures=(Structure("disc", (1, 2)), Structure("cup", (2,))))
Image = tuple[str, int, int]  # patient, grey value, number of rows (of ten) of the disc; the first of them is the cup


def _site(images: list[Image], name: str = "a", width: int = 10, salt: str = "") -> SiteData:
    items, pixels = [], {}
    for number, (patient, grey, rows) in enumerate(images):
        case = f"{salt}case-{number}"
        label = np.zeros((10, width), dtype=np.uint8)
        label[:rows] = 1
        label[: min(rows, 1)] = 2
        items.append(Item(case, 0, f"{salt}{patient}", f"{salt}{number}", width, 10, 1, (0, 1, 2)))
        pixels[case, 0] = np.full((10, width), grey, dtype=np.uint8), label
    return SiteData(name, {"all": tuple(items)}, "val", SPEC, 0, MemorySource(pixels))


def _area(found: Profile, structure: int = 0) -> Any:
    return found.structures[structure].area


def test_by_hand() -> None:
    # Ten patients; the first has two images, of 1 and 3 rows: 0.2 of its area; the others n rows each, n = 2..10.
    images = [("p0", 8, 1), ("p0", 8, 3), *((f"p{n}", 100, n) for n in range(2, 11))]
    found = profile(_site(images))
    assert (found.patients, found.cases, found.images, found.unit, found.min_cases) == (10, 11, 11, "patient", 5)
    shares = sorted([0.2, *(n / 10 for n in range(2, 11))])
    low, high = np.mean(shares[:5]), np.mean(shares[5:])
    assert _area(found).groups == pytest.approx((low, high))
    assert _area(found).mean == pytest.approx((low + high) / 2)
    assert _area(found).sd == pytest.approx(np.std(shares, ddof=1), abs=1e-6)
    assert found.slices_per_case.mean == 1
    assert [structure.empty for structure in found.structures] == [0, 0]
    # Grey 8, bin 1, has one patient and is merged with bin 12 of the nine others: (0.1 x 1 + 0.9 x 12) = 10.9 bins.
    for channel in found.intensity:
        assert dict(enumerate(channel))[11] == 1
        assert sum(channel) == 1


def test_patients_have_equal_weight_regardless_of_their_number_of_images() -> None:
    few = [(f"p{n}", 40, 2) for n in range(5)]
    bright = [(f"q{n}", 200, 2) for n in range(5)]
    many = few + [("q0", 200, 2)] * 50 + bright[1:]
    assert profile(_site(many)).intensity == profile(_site(few + bright)).intensity
    assert dict(enumerate(profile(_site(many)).intensity[0]))[200 // 8] == 0.5


def test_few_patients_have_no_profile_and_their_number_is_not_reported() -> None:
    with pytest.raises(TooFewError, match="^site a: it has fewer than 5 patients, too few to report$"):
        profile(_site([(f"p{n % 4}", 9, 1) for n in range(40)]))  # forty images of four


@pytest.mark.parametrize(
    ("shown", "empty", "area", "share"),
    [
        (9, 0, True, 0.0), (8, 1, True, None), (5, 4, True, None), (5, 5, True, 0.5), (4, 5, False, None),
        (0, 6, False, 1),
    ],
)  # fmt: skip
def test_structures_of_few_patients_are_suppressed(shown: int, empty: int, area: bool, share: float | None) -> None:
    found = profile(_site([(f"p{n}", 9, 3 if n < shown else 0) for n in range(shown + empty)]))
    assert (_area(found) is not None) is area
    assert found.structures[0].empty == share


def test_one_patients_brightest_pixels_are_not_reported() -> None:
    data = _site([(f"p{n}", 100, 3) for n in range(6)])
    data.source.read(data.parts["all"][0])[0][0] = 250
    found = profile(data)
    assert not any(channel[250 // 8] for channel in found.intensity)


IMAGES = st.lists(
    st.tuples(st.sampled_from([f"p{n}" for n in range(12)]), st.integers(0, 255), st.integers(0, 10)),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(IMAGES, st.integers(2, 7))
def test_every_number_is_of_at_least_min_cases_patients(images: list[Image], least: int) -> None:
    patients = {patient for patient, _, _ in images}
    marker = "planted-marker-"
    if len(patients) < least:
        with pytest.raises(TooFewError):
            profile(_site(images, salt=marker), least)
        return
    found = profile(_site(images, salt=marker), least)
    assert marker not in json.dumps(found.to_dict())
    assert Profile.from_dict(found.to_dict()) == found
    assert found.patients == len(patients) >= least
    shown = {patient for patient, _, rows in images if rows}
    empty = {patient for patient, _, rows in images if not rows}
    for structure in found.structures:
        assert (structure.area is None) == (len(shown) < least)
        if structure.area is not None:
            assert len(structure.area.groups) <= len(shown) // least
        if structure.empty is None:
            assert 0 < len(shown) < least or 0 < len(empty) < least
        else:
            assert structure.empty == pytest.approx(sum(not rows for _, _, rows in images) / len(images), abs=1e-6)
    for spread in (found.slices_per_case, found.height_px, found.width_px):
        assert len(spread.groups) <= len(patients) // least
    assert _bins_have_enough_patients(found.intensity[0], images, least)


def _bins_have_enough_patients(shares: tuple[float, ...], images: list[Image], least: int) -> bool:
    """Whether the bins can be divided into runs of `least` patients or more, one for each bin with a share."""
    own = [{patient for patient, grey, _ in images if grey // 8 == index} for index in range(GREY_BINS)]
    runs, seen = 0, set()
    for patients in own:
        seen |= patients
        if len(seen) >= least:
            runs, seen = runs + 1, set()
    return sum(share > 0 for share in shares) <= runs


@settings(max_examples=50, deadline=None)
@given(IMAGES, st.randoms())
def test_the_order_of_images_does_not_matter(images: list[Image], random: Any) -> None:
    images = images + [(f"p{n}", 7, 2) for n in range(5)]
    found = profile(_site(images))
    random.shuffle(images)
    assert profile(_site(images)) == found


def _good() -> dict[str, Any]:
    return profile(_site([(f"p{n}", 20 * n, n) for n in range(1, 11)])).to_dict()


def _changed(key: str, value: Any) -> dict[str, Any]:
    raw = _good()
    *folders, last = key.split(".")
    inner: Any = raw
    for name in folders:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    return raw


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("more", 1), ("format", 2), ("unit", "image"), ("min_cases", 1), ("min_cases", 11), ("patients", 9),
        ("patients", 4), ("patients", True), ("patients", 10.0), ("cases", 9), ("images", 9), ("site", 5),
        ("structures", []), ("structures", [1]), ("intensity", [[1.0]] * 3), ("intensity", [[0.5] * 32] * 3),
        ("intensity", [[2.0, -1.0] + [0.0] * 30] * 3), ("height_px.groups", [10.0] * 3), ("height_px.groups", []),
        ("height_px.sd", -1), ("height_px.mean", 12.0), ("height_px.mean", float("nan")), ("height_px.least", 3),
        ("structures.0.area.groups", [0.9, 0.1]), ("structures.0.area.groups", [0.1, 1.2]),
        ("structures.0.area", [0.1]), ("structures.0.empty", 1.5), ("structures.0.patients", ["x"]),
    ],
)  # fmt: skip
def test_an_untrusted_profile_is_validated(key: str, value: Any) -> None:
    assert Profile.from_dict(_good())
    with pytest.raises(DataError, match=r"^(profile|unknown key '\w+' in profile).*fedfms sites STUDY --site NAME"):
        Profile.from_dict(_changed(key, value))


@pytest.mark.parametrize("raw", [None, 5, [], {}, "profile"])
def test_other_data_are_not_a_profile(raw: Any) -> None:
    with pytest.raises(DataError):
        Profile.from_dict(raw)


def test_distances_by_hand() -> None:
    same = profile(_site([(f"p{n}", 20, 2) for n in range(10)]))
    also = profile(_site([(f"p{n}", 20, 2) for n in range(7)], name="b"))
    apart = profile(_site([(f"p{n}", 200, 5) for n in range(10)], name="c"))
    blank = profile(_site([(f"p{n}", 200, 0) for n in range(10)], name="d"))
    compared = compare([apart, blank, also, same])
    assert compared["distances"]["sites"] == [site["site"] for site in compared["sites"]] == ["a", "b", "c", "d"]
    assert compared["distances"]["intensity"] == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert compared["distances"]["area"]["disc"] == [
        [0, 0, 0.3, None], [0, 0, 0.3, None], [0.3, 0.3, 0, None], [None] * 4,
    ]  # fmt: skip
    assert json.loads(json.dumps(compared)) == compared


def test_profiles_of_different_data_sets_are_not_compared() -> None:
    one = profile(_site([(f"p{n}", 20, 2) for n in range(5)]))
    other = Profile.from_dict(_changed("dataset", "ears") | {"site": "b"})
    for parts, says in (
        ([], "one profile per site"),
        ([one, one], "one profile per site"),
        ([one, other], "different data sets"),
    ):
        with pytest.raises(DataError, match=says):
            compare(parts)
