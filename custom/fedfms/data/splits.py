"""Which patient trains and which is only looked at: from pixels and the seed, not from names, ids or
directory order.

Case ids are keyed by a secret of the site, so they differ from machine to machine; the pixels do not. Two
machines with the same images therefore make the same split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from itertools import islice

from fedfms.errors import DataError

RULE_VERSION = 2  # a change of the rule below is a new number: a manifest of another one is refused
PROTOCOLS: Mapping[str, tuple[str, float]] = {
    "held-out": ("val", 0.1),  # training 9 : validation 1; whole sites are held out besides
    "personal": ("test", 0.2),  # training 8 : test 2
}
Patients = Mapping[str, Sequence[str]]  # patient id -> SHA-256 of the pixels of each of its slices


def assign(patients: Patients, protocol: str, seed: int, blank: Container[str] = ()) -> dict[str, tuple[str, ...]]:
    """{"train": patient ids, "val" or "test": patient ids}, disjoint and complete, each in the rule's order.

    With two patients or more (that share no image) neither part is empty. Patients that share an identical
    image are taken for one, so that no image is on both sides; the `blank` ones are nobody's, for the black slices at
    the ends of volumes would make one patient of a whole site. The smaller part is filled with whole patients
    for as long as each brings its number of slices nearer to the protocol's share.

    Raises:
        DataError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown split protocol {protocol!r}", do=f"one of {sorted(PROTOCOLS)}")
    name, share = PROTOCOLS[protocol]
    groups = _in_order(patients, f"{seed}:{protocol}", blank)
    sizes = [sum(len(patients[patient]) for patient in group) for group in groups]
    aside = _choose(sizes, share)
    return {
        "train": tuple(p for i, group in enumerate(groups) if i not in aside for p in group),
        name: tuple(p for i, group in enumerate(groups) if i in aside for p in group),
    }


def scored(protocol: str, images: int) -> int:
    """Slices of so many that a site sets aside to score on, where each is of a patient of its own."""
    return len(_choose([1] * images, PROTOCOLS[protocol][1]))


def subset(
    patients: Patients, max_images: int | None, seed: int, blank: Container[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The slices (sorted hashes by patient) that a study of at most `max_images` a site uses; None = all.

    One of each patient, in an order that the seed draws, then a second one of each, until the number is
    reached: filled patient by patient, a few long sequences would leave nobody to validate on.
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
    """Groups of patients that share no image, by the SHA-256 of salt and content."""
    keyed = []
    for group in _groups(patients, blank):
        digests = [digest for patient in group for digest in patients[patient]]
        content = min((digest for digest in digests if digest not in blank), default=f"{len(digests)}:{digests[0]}")
        members = sorted(group, key=lambda patient: sorted(patients[patient]))
        keyed.append((hashlib.sha256(f"{salt}:{content}".encode()).hexdigest(), tuple(members)))
    return [members for _, members in sorted(keyed)]


def _groups(patients: Patients, blank: Container[str]) -> list[list[str]]:
    """Patients, joined where they share an identical image; those with no slice are left out."""
    parent = {patient: patient for patient, hashes in patients.items() if hashes}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    first: dict[str, str] = {}
    for patient in parent:
        for digest in patients[patient]:
            if digest in blank:
                continue
            parent[root(patient)] = root(first.setdefault(digest, patient))
    groups: dict[str, list[str]] = {}
    for patient in parent:
        groups.setdefault(root(patient), []).append(patient)
    return list(groups.values())


def _choose(sizes: Sequence[int], share: float) -> set[int]:
    """Indices of the groups that are set aside: never all of them, and at least one of two."""
    target, count = share * sum(sizes), 0
    aside: set[int] = set()
    for index, size in enumerate(sizes):
        nearer = abs(count + size - target) < abs(count - target)
        if nearer and len(aside) + 1 < len(sizes):
            aside.add(index)
            count += size
    if not aside and len(sizes) > 1:
        aside.add(min(range(len(sizes)), key=lambda index: (sizes[index], index)))
    return aside
