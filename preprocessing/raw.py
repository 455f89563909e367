"""What lies in a raw folder: its sites, its images and masks, which belong together, and whose they are.

Nothing is passed over in silence: a folder that may not be read is an error. What is said names no file and no
folder below a site's, for such a name may be a patient's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.errors import DataError
from preprocessing.images import ENDINGS
from preprocessing.recipe import Recipe

_RIGHTS = "give this user the right to read it, then run it again"


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and the patient's original name, which is for the key alone."""

    image: Path
    label: Path
    patient: str


@dataclass(frozen=True)
class Found:
    """Pairs by the image's stem, `(stem, fault)` of what makes no pair, and how many files of other kinds."""

    pairs: dict[str, Pair]
    faults: list[tuple[str, str]]
    ignored: int


def is_folder(path: Path) -> bool:
    """Whether a folder is there. `Path.is_dir` says False on some Pythons where a look is forbidden; this never.

    Raises:
        OSError: it cannot be known, for rights are missing.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def site_folders(raw: Path, only: str | None = None) -> tuple[list[Path], int]:
    """Folders directly below `raw` (or the one named `only`) that hold `images/` and `labels/`, by name; and how
    many could not be looked into.

    Raises:
        DataError: `raw` itself cannot be read.
    """
    try:
        paths = sorted(path for path in raw.iterdir() if only in (None, path.name))
    except OSError as error:
        raise DataError(f"the raw folder cannot be read: {_reason(error)}", do=_RIGHTS) from error
    found, closed = [], 0
    for path in paths:
        try:
            if is_folder(path / "images") and is_folder(path / "labels"):
                found.append(path)
        except OSError:
            closed += 1
    return found, closed


def find_pairs(folder: Path, site: str, recipe: Recipe) -> Found:
    """What a site's raw folder holds.

    Raises:
        DataError: a folder in it cannot be read. Its images would be missed, and taken for withdrawn ones.
    """
    images, double, ignored = _files(folder / "images", site)
    labels, double_labels, ignored_labels = _files(folder / "labels", site)
    matched, faults = _match(images, labels, recipe.mask_suffixes)
    pairs = {}
    for stem, name in matched.items():
        patient = recipe.patient(site, stem)
        if stem in double or name in double_labels:
            faults.append((stem, "several files of this name with different endings"))
        elif patient is None:
            # as a patient of its own, one person's images would be trained on and validated on
            faults.append((stem, "the patient rule does not match the image's name, so whose it is is not known"))
        else:
            pairs[stem] = Pair(images[stem], labels[name], patient)
    return Found(pairs, faults, ignored + ignored_labels)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder.

    Raises:
        OSError: a folder cannot be read (`Path.rglob` leaves it out).
    """

    def stop(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=stop):
        yield from (Path(place, name) for name in names)


def _files(folder: Path, site: str) -> tuple[dict[str, Path], set[str], int]:
    """Files by stem relative to the folder, stems that occur twice, and how many files of other kinds there are."""
    try:
        paths = sorted(path for path in walk(folder) if not path.name.startswith(".") and _plain(path))
    except OSError as error:
        what = f"a folder in {folder.name}/ cannot be read: {_reason(error)}"
        raise DataError(what, where=f"site {site}", do=_RIGHTS) from error
    found: dict[str, Path] = {}
    double: set[str] = set()
    known = [path for path in paths if path.suffix.lower() in ENDINGS]
    for path in known:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            double.add(stem)
        found[stem] = path
    return found, double, len(paths) - len(known)


def _plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True  # a link that leads nowhere: reading it says so


def _match(
    images: dict[str, Path], labels: dict[str, Path], suffixes: Sequence[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The mask's stem by the image's stem; `(stem, fault)` of what has no partner."""
    matched, faults, used = {}, [], set()
    for stem in images:
        names = [stem + suffix for suffix in suffixes if stem + suffix in labels]
        used.update(names)
        if len(names) == 1:
            matched[stem] = names[0]
        else:
            faults.append((stem, "the image has several masks" if names else "the image has no mask"))
    for name in sorted(labels.keys() - used):
        suffix = next((s for s in suffixes if s and name.endswith(s)), "")
        faults.append((name.removesuffix(suffix), "the mask has no image"))
    return matched, faults


def _reason(error: OSError) -> str:
    """What the system says; the error's own text would name the path."""
    return error.strerror or type(error).__name__
