"""Assigns patients to training or to validation (test), by protocol, seed and the hashes of their images.

Names, case ids and directory order play no part: case ids are keyed by a secret of the site, so they differ from
machine to machine. Two machines with the same images make the same split.
"""

import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from itertools import islice
from typing import Literal

from fedfms.errors import DataError

Protocol = Literal["held-out", "personal"]
Patients = Mapping[str, Sequence[str]]  # patient id -> SHA-256 of the pixels of each of its slices

RULE_VERSION = 2  # a change of the rule below needs a new number: manifests of another version are rejected
PROTOCOLS: Mapping[Protocol, tuple[str, float]] = {
    "held-out": ("val", 0.1),  # training 9 : validation 1; whole sites are held out in addition
    "personal": ("test", 0.2),  # training 8 : test 2
}


def assign(patients: Patients, protocol: Protocol, seed: int, blank: Container[str] = ()) -> dict[str, tuple[str, ...]]:
    """{"train": patient ids, "val" or "test": patient ids}, disjoint and complete, each in the rule's order.

    Patients that share an identical image count as one, so no image is on both sides. `blank` images are exempt:
    the black slices at the ends of volumes would join all patients of a site. The smaller part is filled with whole
    patients, as long as each brings its number of slices nearer to the protocol's share. With two patients or more
    (that share no image) neither part is empty.

    Raises:
        DataError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown split protocol {protocol!r}", do=f"one of {sorted(PROTOCOLS)}")
    name, share = PROTOCOLS[protocol]
    groups = _in_order(patients, f"{seed}:{protocol}", blank)
    sizes = [sum(len(patients[patient]) for patient in group) for group in groups]
    smaller = _choose(sizes, share)
    return {
        "train": tuple(p for i, group in enumerate(groups) if i not in smaller for p in group),
        name: tuple(p for i, group in enumerate(groups) if i in smaller for p in group),
    }


def scored(protocol: Protocol, images: int) -> int:
    """Number of slices, of `images`, that a site scores on where each slice is of a different patient."""
    return len(_choose([1] * images, PROTOCOLS[protocol][1]))


def subset(
    patients: Patients, max_images: int | None, seed: int, blank: Container[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The slices (sorted hashes by patient) of a study with at most `max_images` per site; None: all.

    Takes one slice of each patient, in an order drawn by the seed, then a second one of each, until the number is
    reached. Filled patient by patient, a few long sequences would leave no patient to validate on.
    """
    everything = {patient: sorted(hashes) for patient, hashes in patients.items() if hashes}
    if max_images is None:
        return {patient: tuple(hashes) for patient, hashes in everything.items()}
    ordered = [patient for group in _in_order(patients, f"{seed}:subset", blank) for patient in group]
    longest = max(map(len, everything.values()), default=0)
    turns = (patient for turn in range(longest) for patient in ordered if turn < len(everything[patient]))
    counts = Counter(islice(turns, max_images))
    return {patient: tuple(everything[patient][:count]) for patient, count in counts.items()}


def _in_order(patients: Patients, salt: str, blank: Container[str]) -> list[tuple[str, ...]]:
    """Groups of patients that share an image, sorted by the SHA-256 of salt and content."""
    keyed = []
    for group in _groups(patients, blank):
        digests = [digest for patient in group for digest in patients[patient]]
        content = min((digest for digest in digests if digest not in blank), default=f"{len(digests)}:{digests[0]}")
        members = sorted(group, key=lambda patient: sorted(patients[patient]))
        keyed.append((hashlib.sha256(f"{salt}:{content}".encode()).hexdigest(), tuple(members)))
    return [members for _, members in sorted(keyed)]


def _groups(patients: Patients, blank: Container[str]) -> list[list[str]]:
    """Patients, joined where they share an identical image; patients without slices are skipped."""
    parent = {patient: patient for patient, hashes in patients.items() if hashes}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    first: dict[str, str] = {}
    for patient in parent:
        for digest in patients[patient]:
            if digest not in blank:
                parent[root(patient)] = root(first.setdefault(digest, patient))
    groups: dict[str, list[str]] = {}
    for patient in parent:
        groups.setdefault(root(patient), []).append(patient)
    return list(groups.values())


def _choose(sizes: Sequence[int], share: float) -> set[int]:
    """Indices of the groups of the smaller part: never all of them, and at least one of two."""
    target, count = share * sum(sizes), 0
    chosen: set[int] = set()
    for index, size in enumerate(sizes):
        nearer = abs(count + size - target) < abs(count - target)
        if nearer and len(chosen) + 1 < len(sizes):
            chosen.add(index)
            count += size
    if not chosen and len(sizes) > 1:
        chosen.add(min(range(len(sizes)), key=lambda index: (sizes[index], index)))
    return chosen
