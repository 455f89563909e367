"""The interface of a data set: its structures, how to find its cases in a raw folder, and how to read one case.

`find` and `read` are plain functions or frozen dataclasses with `__call__`, because they are pickled for worker
processes. `find` looks at file names only; `read` opens the files of one case.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfms.data.manifest import LabelClass, Volume

Pixels = NDArray[np.uint8]
Advance = Callable[[int, int], None]  # reports progress: number done, total


@dataclass(frozen=True)
class RawCase:
    """One examination in the raw folder, not read yet.

    `name` (unique in the site) and `patient` (the same for all cases of a person) are original names. They go into
    the key file and the keyed hashes, and nowhere else.
    """

    name: str
    patient: str
    files: Mapping[str, Path]  # files by role; the data set chooses the roles ("image", "label", "t1ce")
    part: int | None = None  # index of the case in a file that holds many cases


@dataclass(frozen=True)
class Found:
    """The cases of a site by name, and what cannot become a case."""

    cases: Mapping[str, RawCase]
    faults: tuple[tuple[str, str], ...] = ()  # (name, fault) of files that make no case
    ignored: int = 0  # number of files of other kinds
    notes: tuple[str, ...] = ()  # lines to show after the conversion

    @classmethod
    def collect(cls, entries: Iterable[tuple[str, RawCase | str]], ignored: int = 0) -> Found:
        """From pairs of a name and its case, or of a name and its fault."""
        cases: dict[str, RawCase] = {}
        faults = []
        for name, entry in entries:
            if isinstance(entry, str):
                faults.append((name, entry))
            else:
                cases[name] = entry
        return cls(cases, tuple(faults), ignored)


@dataclass(frozen=True)
class Decoded:
    """A case after reading: pairs of an image, uint8 (H, W) or (H, W, 3), and its label values, uint8 (H, W)."""

    slices: tuple[tuple[Pixels, Pixels], ...]
    volume: Volume | None = None  # position of the slices in their volume; None for flat images


@dataclass(frozen=True)
class Recipe:
    """A data set under its options.

    `sites` and `find` raise DataError, Fault or OSError if the raw folder cannot be searched; the engine turns each
    into one line without file names. `read` raises `preprocessing.images.Fault` for a defect of the case.
    """

    dataset: str
    structures: tuple[LabelClass, ...]
    sites: Callable[[Path], list[str]]  # names of the sites in a raw folder
    find: Callable[[Path, str], Found]  # cases of one site of a raw folder
    read: Callable[[RawCase], Decoded]  # reads a case
    options: Mapping[str, str] = field(default_factory=dict)  # chosen options, for the manifest and the summary


def add_choice(parser: argparse.ArgumentParser, name: str, choices: Sequence[str]) -> None:
    """Add an option with these choices; the first is the default."""
    parser.add_argument(name, choices=choices, default=choices[0], help=f"default {choices[0]}")


def chosen(arguments: argparse.Namespace, *names: str) -> dict[str, str]:
    """`Recipe.options` from arguments of these names."""
    return {name.replace("_", "-"): str(getattr(arguments, name)) for name in names}


def number_in(low: int, high: int) -> Callable[[str], int]:
    """The argparse type of an option that is a whole number in `low`..`high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number in {low}..{high}")
        return int(text)

    return parse
