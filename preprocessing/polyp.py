"""Polyps in colonoscopy frames: ten sites of hospitals in six countries.

Sites, by the names that a study uses, and the folders of their publishers. Unpack a download anywhere in RAW under the
names below (capitals, blanks, `-` and `_` do not matter), and its sites are found:
  cvc_clinicdb_barcelona_es    Hospital Clinic, Barcelona (CVC-ClinicDB): CVC-ClinicDB/Original, .../Ground Truth,
                               TIFF; or CVC-ClinicDB/PNG/Original, .../PNG/Ground Truth. PNG/ next to TIF/ is
                               ignored
  cvc_colondb_barcelona_es     Barcelona (CVC-ColonDB, 380 frames): CVC-ColonDB/images, .../masks
  etis_lariboisiere_fr         Lariboisiere, Paris (ETIS-Larib, 196 frames): ETIS-LaribPolypDB/1.tif and, next to
                               that folder, Ground Truth/p1.tif; or ETIS-LaribPolypDB/images, .../masks
  kvasir_seg_vestreviken_no    Vestre Viken, Norway (Kvasir-SEG): Kvasir-SEG/images, Kvasir-SEG/masks
  polypgen_c1_paris_fr         Ambroise Pare, Paris (PolypGen centre 1): PolypGen2021_MultiCenterData_v3/data_C1/
                               images_C1/a.jpg, .../masks_C1/a_mask.jpg; the same for the others
  polypgen_c2_padova_it        Padova (centre 2)
  polypgen_c3_aviano_it        CRO Aviano (centre 3)
  polypgen_c4_oslo_no          Oslo University Hospital (centre 4)
  polypgen_c5_oxford_uk        John Radcliffe, Oxford (centre 5)
  polypgen_c6_alexandria_eg    Alexandria (centre 6)
Any other layout: RAW/<site>/images/a.jpg and RAW/<site>/labels/a_mask.jpg (or labels/a.jpg); PNG, JPEG, TIFF or BMP.
The patient rule depends on the name of the site's folder, so use the names above. Other folders are sites too; each of
their frames is a separate patient. A site that RAW holds twice is an error.

Of the test pack TestDataset/<set>/images and masks, ColonDB and ETIS are used, because the pack holds them completely.
Its Kvasir, CVC-ClinicDB and CVC-300 are parts of other sites here and are ignored. So are sequenceData and
imagesAll_positive of PolypGen, and the 300 frames of the first release of ColonDB (BMP).

The publishers' folders are from public code and were tested on imitations only. Images of Kvasir-SEG, ClinicDB and
PolypGen's centres except the fourth were available as RAW/<site>. The identity of centre 4 is from public code, too.

Structures: polyp (1). Masks have JPEG noise, so a luminance above 127 is polyp; RGB and palette masks are converted to
luminance first. Frames without a polyp have an empty mask and are included.

Patients: in Paris, the name before the first `_` is an examination. ClinicDB has 29 video sequences; each counts as a
patient. ColonDB (15 sequences) and ETIS (34) have numbered frames, but no public source was found that says where a
sequence ends. Runs of 38 and of 14 neighbouring frames count as a patient. This puts most frames of a polyp on one side
of a split, but not those of a sequence that two runs share; that the numbers follow the sequences is from memory. To be
strict, hold out the whole site. The names of the other sites do not identify patients, so each frame is a patient.

Raw data: PolypGen at synapse.org, syn26376615; Kvasir-SEG at datasets.simula.no/kvasir-seg; CVC-ClinicDB at
polyp.grand-challenge.org/CVCClinicDB; ETIS-Larib at polyp.grand-challenge.org/EtisLarib; CVC-ColonDB in the test
pack of PraNet, github.com/DengPingFan/PraNet.

Licence: this software grants no right to the data. PolypGen: Synapse syn26376615, article CC BY 4.0. Kvasir-SEG:
research and education. CVC-ClinicDB: images are property of Hospital Clinic Barcelona, research use. ETIS-Larib: images
are property of Lariboisiere hospital and ETIS; CVC-ColonDB: of CVC Barcelona; the terms of both were not verified.
Check the terms before you use or share anything.

Citations: Ali et al., Sci Data 10:75, 2023 (PolypGen); Jha et al., MMM 2020 (Kvasir-SEG); Bernal et al., CMIG
43, 2015 (CVC-ClinicDB); Bernal et al., Pattern Recognition 45, 2012 (CVC-ColonDB); Silva et al., IJCARS 9, 2014
(ETIS-Larib).
"""

import argparse
import bisect
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from fedfms.data.manifest import LabelClass
from fedfms.errors import DataError
from fedfms.preprocessing.pairfiles import IMAGES, LABELS, PairReader, list_files, match_pairs, pair_sites
from fedfms.preprocessing.raw import RIGHTS, is_folder, reason, split_by_access
from fedfms.preprocessing.recipe import Found, Recipe

NAME = "polyp"
HELP = "polyps in colonoscopy frames: PolypGen, Kvasir-SEG, CVC-ClinicDB, CVC-ColonDB, ETIS-Larib"
CLINICDB, KVASIR = "cvc_clinicdb_barcelona_es", "kvasir_seg_vestreviken_no"
COLONDB, ETIS = "cvc_colondb_barcelona_es", "etis_lariboisiere_fr"
POLYPGEN = (
    "polypgen_c1_paris_fr", "polypgen_c2_padova_it", "polypgen_c3_aviano_it",
    "polypgen_c4_oslo_no", "polypgen_c5_oxford_uk", "polypgen_c6_alexandria_eg",
)  # fmt: skip
SITES = (CLINICDB, KVASIR, COLONDB, ETIS, *POLYPGEN)
# Last frame of each of the 29 video sequences of CVC-ClinicDB (polyp.grand-challenge.org/CVCClinicDB). Neighbouring
# frames show the same polyp, so a sequence counts as a patient.
CLINICDB_LAST_FRAMES = (
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428,
    447, 466, 478, 503, 528, 546, 571, 591, 612,
)  # fmt: skip
# (number of frames, neighbouring frames that count as one patient), of sets with unpublished ends of sequences
RUNS = {"cvc_colondb": (380, 38), "etis": (196, 14)}
_SUFFIXES = ("", "_mask")
_ODD_SUFFIX = "mask"  # one frame of PolypGen's centre 3 is published as x_.jpg with x_mask.jpg
_UNKNOWN = "not a known site of this data set; converted as polyps, with each frame as a separate patient"


def add_options(parser: argparse.ArgumentParser) -> None:
    """This data set has no options."""


def recipe(arguments: argparse.Namespace) -> Recipe:
    """Pairs of a frame and its mask."""
    return Recipe(NAME, (LabelClass("polyp", 1),), site_names, find_pairs, PairReader())


def patient(site: str, stem: str) -> str | None:
    """The patient of a frame: an examination (Paris), a sequence (ClinicDB), a run of frames (ColonDB, ETIS), or the
    frame itself.

    None for a name in ClinicDB, ColonDB or ETIS that is not a frame number, because its sequence is unknown.
    """
    if site.startswith("polypgen_c1"):
        return stem.partition("_")[0]
    if site.startswith("cvc_clinicdb"):
        number = _number(stem, CLINICDB_LAST_FRAMES[-1])
        return None if number is None else f"sequence {bisect.bisect_left(CLINICDB_LAST_FRAMES, number) + 1}"
    for name, (frames, length) in RUNS.items():
        if site.startswith(name):
            number = _number(stem, frames)
            return None if number is None else f"run {(number - 1) // length + 1}"
    return stem


def _number(stem: str, frames: int) -> int | None:
    """The number of a frame; None if the name is not a number in 1..`frames`."""
    return int(stem) if stem.isdecimal() and 1 <= int(stem) <= frames else None


@dataclass(frozen=True)
class Layout:
    """A publisher's folders `images` and `labels`, side by side. Folder names are compared as `_plain` returns them."""

    site: str
    above: str  # name of a folder around them, at any level; "" for anywhere
    images: str
    labels: str
    prefix: str = ""  # the names of masks begin with it


LAYOUTS = (
    Layout(KVASIR, "kvasirseg", "images", "masks"),
    Layout(CLINICDB, "cvcclinicdb", "original", "groundtruth"),
    Layout(ETIS, "", "etislaribpolypdb", "groundtruth", prefix="p"),
    Layout(ETIS, "etislaribpolypdb", "images", "masks"),
    Layout(COLONDB, "cvccolondb", "images", "masks"),
    *(Layout(site, f"datac{n}", f"imagesc{n}", f"masksc{n}") for n, site in enumerate(POLYPGEN, start=1)),
)


@dataclass(frozen=True)
class Place:
    """The two folders of a site in a raw folder, and the prefix of its masks' names."""

    site: str
    images: Path
    labels: Path
    prefix: str = ""


def site_names(raw: Path) -> list[str]:
    """As `Recipe.sites`. A folder with unreadable content may be a site: `find_pairs` reports the error."""
    places, closed = _places(raw)
    return sorted({*(place.site for place in places), *closed})


def find_pairs(raw: Path, site: str) -> Found:
    """As `Recipe.find`; a site that `raw` holds several times is an error."""
    places, closed = _places(raw)
    if site in closed:
        raise DataError(f"a folder in it cannot be read: {closed[site]}", where=f"site {site}", do=RIGHTS)
    found = [place for place in places if place.site == site]
    if len(found) != 1:
        what = f"--raw holds the folders of the site {len(found)} times"
        raise DataError(what, where=f"site {site}", do="leave one copy in --raw")
    images, masks = list_files(found[0].images, site), list_files(found[0].labels, site)
    pairs = match_pairs(site, images, masks, _SUFFIXES, patient, found[0].prefix, _ODD_SUFFIX)
    return pairs if site in SITES else replace(pairs, notes=(f"{site}: {_UNKNOWN}",))


def _places(raw: Path) -> tuple[list[Place], dict[str, str]]:
    """Places of sites, and the system's messages for folders directly below `raw` with unreadable content, by name."""
    own = pair_sites(raw)
    tops = [folder for folder in split_by_access(raw)[0] if _is_searched(folder) and folder.name not in own]
    places = [Place(site, raw / site / IMAGES, raw / site / LABELS) for site in own] + _side_by_side(tops, ())
    used = {folder for place in places for folder in (place.images, place.labels)}
    closed: dict[str, str] = {}
    for top in tops:
        if top not in used:
            try:
                for place in _below(top, (_plain(top),)):  # one by one, to include the places before an error
                    places.append(place)
            except OSError as error:
                closed[top.name] = reason(error)
    return _without_copies(places), closed


def _below(folder: Path, above: tuple[str, ...]) -> Iterator[Place]:
    """Publishers' folders in a folder, at any depth, without a search inside of them.

    Args:
        above: plain names of the folder and those around it.
    """
    folders = sorted(path for path in folder.iterdir() if _is_searched(path))
    found = _side_by_side(folders, above)
    yield from found
    used = {path for place in found for path in (place.images, place.labels)}
    for path in folders:
        if path not in used:
            yield from _below(path, (*above, _plain(path)))


def _is_searched(path: Path) -> bool:
    """Whether this is a folder that is neither hidden nor __MACOSX nor a link, which leads elsewhere."""
    return not path.name.startswith((".", "__")) and not path.is_symlink() and is_folder(path)


def _side_by_side(folders: list[Path], above: tuple[str, ...]) -> list[Place]:
    """Layouts with both folders among these; several times if several folders have one plain name."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in folders:
        by_name[_plain(path)].append(path)
    return [
        Place(layout.site, images, labels, layout.prefix)
        for layout in LAYOUTS
        if not layout.above or layout.above in above
        for images, labels in product(by_name[layout.images], by_name[layout.labels])
    ]


def _without_copies(places: list[Place]) -> list[Place]:
    """Without PNG/ next to TIF/, in which ClinicDB is distributed with the same pixels; the authors' TIFF is used."""
    around = {(place.site, place.images.parent.parent, _plain(place.images.parent)) for place in places}
    return [
        place for place in places
        if _plain(place.images.parent) != "png" or (place.site, place.images.parent.parent, "tif") not in around
    ]  # fmt: skip


def _plain(folder: Path) -> str:
    """A folder's name without capitals, blanks, `-` and `_`, in which copies of a release differ."""
    return re.sub("[-_ ]", "", folder.name.lower())
