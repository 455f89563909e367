"""Where a polyp site's frames and masks lie in the raw folder: in RAW/<site>/images and labels, or in the folders
that its publishers chose. Folders are told by their names; nothing is opened.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from fedfms.errors import DataError
from preprocessing.pairfiles import IMAGES, LABELS, PatientRule, list_files, match_pairs, pair_sites
from preprocessing.raw import RIGHTS, is_folder, reason, split_by_access
from preprocessing.recipe import Found

CLINICDB, KVASIR = "cvc_clinicdb_barcelona_es", "kvasir_seg_vestreviken_no"
COLONDB, ETIS = "cvc_colondb_barcelona_es", "etis_lariboisiere_fr"
POLYPGEN = (
    "polypgen_c1_paris_fr", "polypgen_c2_padova_it", "polypgen_c3_aviano_it",
    "polypgen_c4_oslo_no", "polypgen_c5_oxford_uk", "polypgen_c6_alexandria_eg",
)  # fmt: skip
_SUFFIXES = ("", "_mask")
# One frame of PolypGen's centre 3 is published as x_.jpg beside x_mask.jpg.
_ODD_SUFFIX = "mask"


@dataclass(frozen=True)
class Layout:
    """A publisher's folders: `images` and `labels` side by side, somewhere below `above` ("" for anywhere). A
    mask's name begins with `prefix`. Folder names are compared as `_plain` makes them.
    """

    site: str
    above: str
    images: str
    labels: str
    prefix: str = ""


LAYOUTS = (
    Layout(KVASIR, "kvasirseg", "images", "masks"),
    Layout(CLINICDB, "cvcclinicdb", "original", "groundtruth"),
    Layout(ETIS, "", "etislaribpolypdb", "groundtruth", prefix="p"),
    Layout(ETIS, "etislaribpolypdb", "images", "masks"),
    Layout(COLONDB, "cvccolondb", "images", "masks"),
    *(Layout(site, f"datac{n}", f"imagesc{n}", f"masksc{n}") for n, site in enumerate(POLYPGEN, start=1)),
)
_KNOWN = frozenset(layout.site for layout in LAYOUTS)
_STRANGER = "none of this data set's sites has this name; taken for polyps, and each frame for a patient of its own"


@dataclass(frozen=True)
class Place:
    """The two folders of a site, and what its masks' names begin with."""

    images: Path
    labels: Path
    prefix: str = ""


def site_names(raw: Path) -> list[str]:
    """Sites of a raw folder, by name.

    A folder in which something cannot be read may hold some: it is named, and looking for its cases says so.

    Raises:
        DataError: `raw` itself cannot be read.
    """
    places, closed = _look(raw)
    return sorted({*places, *closed})


@dataclass(frozen=True)
class LayoutFinder:
    """Pairs of a site, wherever its folders lie; `patient` as in `PairFinder`."""

    patient: PatientRule

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`.

        Raises:
            DataError: a folder cannot be read, or the site lies there several times.
        """
        places, closed = _look(raw)
        if site in closed:
            raise DataError(f"a folder in it cannot be read: {closed[site]}", where=f"site {site}", do=RIGHTS)
        found = places.get(site, [])
        if len(found) != 1:
            raise DataError(
                f"--raw holds the site's folders {len(found)} times", where=f"site {site}",
                do="leave one copy there: which of several is meant cannot be known",
            )  # fmt: skip
        place = found[0]
        frames, masks = list_files(place.images, site), list_files(place.labels, site)
        pairs = match_pairs(site, frames, masks, _SUFFIXES, self.patient, place.prefix, _ODD_SUFFIX)
        return pairs if site in _KNOWN else replace(pairs, notes=(f"{site}: {_STRANGER}",))


def _look(raw: Path) -> tuple[dict[str, list[Place]], dict[str, str]]:
    """Places by site; and why folders directly below `raw` cannot be looked into, by their names.

    Raises:
        DataError: `raw` itself cannot be read.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    closed: dict[str, str] = {}
    own = pair_sites(raw)
    for site in own:
        places[site].append(Place(raw / site / IMAGES, raw / site / LABELS))
    tops = [folder for folder in split_by_access(raw)[0] if _may_hold(folder) and folder.name not in own]
    for layout, place in _beside(tops, ()):
        places[layout.site].append(place)
    taken = {folder for found in places.values() for place in found for folder in (place.images, place.labels)}
    for top in tops:
        if top in taken:
            continue
        try:
            for layout, place in _below(top, (_plain(top),)):
                places[layout.site].append(place)
        except OSError as error:
            closed[top.name] = reason(error)
    return {site: _without_copies(found) for site, found in places.items()}, closed


def _below(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[Layout, Place]]:
    """Publishers' folders in a folder, at any depth; what lies in them is not looked at. `above` are the plain names
    of the folder and those around it.
    """
    folders = sorted(path for path in folder.iterdir() if _may_hold(path))
    found = list(_beside(folders, above))
    yield from found
    taken = {path for _, place in found for path in (place.images, place.labels)}
    for path in folders:
        if path not in taken:
            yield from _below(path, (*above, _plain(path)))


def _may_hold(path: Path) -> bool:
    """Whether this is a folder that is looked into: none that is hidden or __MACOSX, and no link, for what is behind
    it lies elsewhere.
    """
    return not path.name.startswith((".", "__")) and not path.is_symlink() and is_folder(path)


def _beside(folders: list[Path], above: tuple[str, ...]) -> Iterator[tuple[Layout, Place]]:
    """Layouts of which both folders are among these; several times where several have a folder's plain name."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in folders:
        by_name[_plain(path)].append(path)
    for layout in LAYOUTS:
        if not layout.above or layout.above in above:
            for images, labels in product(by_name[layout.images], by_name[layout.labels]):
                yield layout, Place(images, labels, layout.prefix)


def _without_copies(places: list[Place]) -> list[Place]:
    """ClinicDB is passed on with PNG/ beside TIF/, of the same pixels: then the authors' TIFF counts."""
    around = [place.images.parent for place in places]
    return [
        place for place, folder in zip(places, around, strict=True)
        if _plain(folder) != "png" or not any(_plain(o) == "tif" and o.parent == folder.parent for o in around)
    ]  # fmt: skip


def _plain(folder: Path) -> str:
    """A folder's name without capitals, blanks, `-` and `_`, in which copies of a release differ."""
    return re.sub("[-_ ]", "", folder.name.lower())
