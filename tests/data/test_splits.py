"""Splits: disjoint, complete, by content alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfms.data.splits import PROTOCOLS, assign, subset
from fedfms.errors import DataError

hashes = st.text("0123456789abcdef", min_size=8, max_size=8)
# patients with distinct images
patients = st.lists(st.lists(hashes, min_size=1, max_size=5), max_size=30).map(
    lambda lists: {f"p{i}": [f"{h}{i}-{k}" for k, h in enumerate(own)] for i, own in enumerate(lists)}
)
protocols = st.sampled_from(sorted(PROTOCOLS))
seeds = st.integers(0, 5)


@pytest.mark.slow
@given(patients, protocols, seeds)
def test_parts_are_disjoint_complete_and_not_empty(patients, protocol, seed):
    parts = assign(patients, protocol, seed)
    listed = [p for members in parts.values() for p in members]
    assert sorted(listed) == sorted(patients)
    if len(patients) >= 2:
        assert all(parts.values())


@given(patients, protocols, seeds, st.randoms())
def test_neither_ids_nor_order_matter(patients, protocol, seed, shuffler):
    names = list(patients)
    shuffler.shuffle(names)
    other = {f"other-{name}": list(reversed(patients[name])) for name in names}
    parts = assign(patients, protocol, seed)
    renamed = {part: tuple(f"other-{p}" for p in members) for part, members in parts.items()}
    assert assign(other, protocol, seed) == renamed


@given(st.integers(2, 200), protocols, seeds)
def test_proportion_with_one_slice_each(n, protocol, seed):
    name, share = PROTOCOLS[protocol]
    parts = assign({f"p{i}": [f"{i}"] for i in range(n)}, protocol, seed)
    assert abs(len(parts[name]) - share * n) <= 1


@given(patients, protocols, seeds)
def test_large_patients_do_not_distort_the_proportion(patients, protocol, seed):
    name, share = PROTOCOLS[protocol]
    total = sum(map(len, patients.values()))
    smaller = sum(len(patients[p]) for p in assign(patients, protocol, seed)[name])
    assert smaller <= max(2 * share * total, min((len(h) for h in patients.values()), default=0))


def test_an_identical_image_is_never_on_both_sides():
    patients = {f"p{i}": [f"own{i}"] for i in range(20)}
    patients["p3"].append("shared")
    patients["p7"].append("shared")
    for seed in range(20):
        for members in assign(patients, "personal", seed).values():
            assert ("p3" in members) == ("p7" in members)


def test_the_seed_and_the_protocol_matter():
    patients = {f"p{i}": [f"{i}"] for i in range(40)}
    assert assign(patients, "held-out", 0) != assign(patients, "held-out", 1)
    assert not set(assign(patients, "held-out", 0)["val"]) <= set(assign(patients, "personal", 0)["test"])


def test_pinned():
    """A change of the rule must raise RULE_VERSION: manifests contain its results."""
    parts = assign({f"p{i}": [f"{i}"] for i in range(10)}, "personal", 0)
    assert parts["test"] == ("p1", "p7")


def test_unknown_protocol():
    with pytest.raises(DataError, match="held-out"):
        assign({}, "other", 0)


@given(patients, st.integers(1, 60), seeds)
def test_a_subset_covers_as_many_patients_as_possible(patients, max_images, seed):
    chosen = subset(patients, max_images, seed)
    total = sum(map(len, patients.values()))
    assert sum(map(len, chosen.values())) == min(max_images, total)
    counts = {patient: len(chosen.get(patient, ())) for patient in patients}
    most = max(counts.values(), default=0)
    assert all(counts[p] >= min(most - 1, len(patients[p])) for p in patients)
    shuffled = list(patients.items())
    random.Random(seed).shuffle(shuffled)
    assert subset(dict(shuffled), max_images, seed) == chosen


@given(patients, seeds)
def test_a_larger_subset_contains_the_smaller(patients, seed):
    small, large = subset(patients, 5, seed), subset(patients, 9, seed)
    assert all(set(small[p]) <= set(large[p]) for p in small)


@given(patients, protocols, seeds)
def test_black_slices_do_not_join_patients(patients, protocol, seed):
    """The ends of head volumes are black: joined by them, no patient would be left to validate on."""
    padded = {patient: [*hashes, "black"] for patient, hashes in patients.items()}
    parts = assign(padded, protocol, seed, blank={"black"})
    assert sorted(p for members in parts.values() for p in members) == sorted(padded)
    if len(padded) >= 2:
        assert all(parts.values())
        assert not all(assign(padded, protocol, seed).values())
    other = {f"other-{patient}": hashes for patient, hashes in padded.items()}
    again = assign(other, protocol, seed, blank={"black"})
    assert {name: [f"other-{p}" for p in members] for name, members in parts.items()} == {
        name: list(members) for name, members in again.items()
    }
