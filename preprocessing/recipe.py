"""What a data set says of itself, so that one engine converts them all: its structures, how its cases are
found in the raw folder, and how one of them is read.

`find` and each `read` are plain functions or frozen dataclasses with `__call__`: they are sent to worker
processes. `find` opens no image; all that it tells of files is names. `read` opens the files of one case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfms.data.manifest import LabelClass, Volume

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class RawCase:
    """An examination as it lies in the raw folder; nothing of it is read yet.

    `name` (unique in the site) and `patient` (the same for all cases of a person) are the site's own words:
    they go into the key file and the keyed hashes, and nowhere else. `files` maps a role of the data set's
    choice ("image", "label", "t1ce") to a file; `part` says which part of a file that holds many cases.
    """

    name: str
    patient: str
    files: Mapping[str, Path]
    part: int | None = None


@dataclass(frozen=True)
class Found:
    """Cases by name, `(name, fault)` of what makes no case, how many files of other kinds lie there, and what the
    person who converts is to know of the site.
    """

    cases: Mapping[str, RawCase]
    faults: tuple[tuple[str, str], ...] = ()
    ignored: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """What a case becomes: pairs of an image, uint8 (H, W) or (H, W, 3), and its label values, uint8 (H, W).

    `volume` says where the slices lie in the volume that they were cut from; None for flat images.
    """

    slices: tuple[tuple[Pixels, Pixels], ...]
    volume: Volume | None = None


@dataclass(frozen=True)
class Recipe:
    """A data set.

    `sites(raw)` names the sites that the raw folder holds; `find(raw, site)` the cases of one of them;
    `read(case)` raises `preprocessing.images.Fault` for what is wrong with one case.
    """

    dataset: str
    structures: tuple[LabelClass, ...]
    sites: Callable[[Path], list[str]]
    find: Callable[[Path, str], Found]
    read: Callable[[RawCase], Decoded]
    options: Mapping[str, str] = field(default_factory=dict)  # what was chosen, for the manifest and the report
