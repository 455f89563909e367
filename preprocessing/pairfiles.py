"""Folders of images and masks: which belong together, whose they are, and how a pair is read."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.errors import DataError
from preprocessing.images import ENDINGS, Fault, LabelRule, read_image, read_label
from preprocessing.raw import RIGHTS, is_folder, need_folder, reason, split_by_access, walk
from preprocessing.recipe import Decoded, Found, RawCase

IMAGES, LABELS = "images", "labels"
PatientRule = Callable[[str, str], str | None]


def own_patient(site: str, stem: str) -> str:
    """The patient rule where nothing is known: each image is its own patient."""
    return stem


def pair_sites(raw: Path) -> list[str]:
    """Sites of a raw folder `<site>/images`, `<site>/labels`, by name; a folder that is closed to this user is
    none (`split_by_access` counts it).

    Raises:
        DataError: `raw` itself cannot be read.
    """
    return [path.name for path in split_by_access(raw)[0] if all(is_folder(path / part) for part in (IMAGES, LABELS))]


@dataclass(frozen=True)
class OneSite:
    """The site of a raw folder that holds `images/` and `labels/` itself."""

    name: str

    def __call__(self, raw: Path) -> list[str]:
        """Its name.

        Raises:
            DataError: a folder is not there or cannot be read.
        """
        for part in (IMAGES, LABELS):
            need_folder(raw / part, f"{part}/ in --raw")
        return [self.name]


@dataclass(frozen=True)
class Listing:
    """Files by stem relative to the folder, stems that occur twice, names of links to folders, and how many
    files of other kinds there are.
    """

    files: dict[str, Path]
    double: set[str]
    linked: list[str]
    ignored: int


def image_stem(path: Path) -> str:
    """The name of a flat image's file without its ending; "" for other files."""
    return path.stem if path.suffix.lower() in ENDINGS else ""


def list_files(
    folder: Path,
    site: str,
    stem_of: Callable[[Path], str] = image_stem,
    foreign: Callable[[Path], str] | None = None,
) -> Listing:
    """What lies below a folder: the files of which `stem_of` tells a stem; others are counted, unless `foreign`
    tells a stem of one.

    Raises:
        DataError: the folder cannot be read, or it holds a file that is foreign to it.
    """
    found: dict[str, Path] = {}
    double: set[str] = set()
    linked: list[str] = []
    ignored = 0
    try:
        for path in sorted(path for path in walk(folder) if not path.name.startswith(".")):
            mode, name = _mode(path), path.relative_to(folder)
            if stat.S_ISDIR(mode):
                linked.append(name.as_posix())
            elif stat.S_ISREG(mode) and stem_of(path):
                stem = (name.parent / stem_of(path)).as_posix()
                if stem in found:
                    double.add(stem)
                found[stem] = path
            elif foreign and foreign(path):
                what = f"{folder.name}/ holds files of another kind than the rule's `kind`"
                raise DataError(what, where=f"site {site}", do="set `kind`, and put one kind only in a folder")
            else:
                ignored += stat.S_ISREG(mode)
    except OSError as error:
        what = f"a folder in {folder.name}/ cannot be read: {reason(error)}"
        raise DataError(what, where=f"site {site}", do=RIGHTS) from error
    return Listing(found, double, linked, ignored)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return stat.S_IFREG  # a link that leads nowhere: reading it says so


@dataclass(frozen=True)
class PairFinder:
    """Pairs of a site: the mask of `images/a.jpg` is `labels/a` + one of `mask_suffixes` + any ending.

    `patient` maps a site and an image's stem to a name that images of one patient share; None, where its rule
    does not say, is a fault of the image. With `site_folders` the two folders lie in `raw/<site>`, else in `raw`.
    `listing(folder, site)` says what lies in one of the two folders.
    """

    mask_suffixes: tuple[str, ...] = ("", "_mask")
    patient: PatientRule = own_patient
    site_folders: bool = True
    listing: Callable[[Path, str], Listing] = list_files

    def __call__(self, raw: Path, site: str) -> Found:
        """Pairs by the image's stem relative to `images/`, as cases of the files "image" and "label".

        Raises:
            DataError: a folder cannot be read. Its images would be missed, and taken for withdrawn ones.
        """
        folder = raw / site if self.site_folders else raw
        frames, masks = self.listing(folder / IMAGES, site), self.listing(folder / LABELS, site)
        return match_pairs(site, frames, masks, self.mask_suffixes, self.patient)


def match_pairs(
    site: str, frames: Listing, masks: Listing, suffixes: Sequence[str], patient: PatientRule, prefix: str = "",
    odd_suffix: str = "",
) -> Found:  # fmt: skip
    """Pairs of two folders: the mask of `a.jpg` is `prefix` + `a` + one of `suffixes` + any ending. `odd_suffix` is
    for a stem that ends in `_` and has no such mask.

    The cases have the files "image" and "label", and as names the image's stem relative to its folder.
    """
    claims = _claims(frames.files, masks.files, suffixes, prefix, odd_suffix)
    matched, faults = _match(claims, masks.files, suffixes, prefix)
    faults += [(name, "a link to a folder is not followed; put the folder itself there")
               for name in frames.linked + masks.linked]  # fmt: skip
    cases = {}
    for stem, name in matched.items():
        person = patient(site, stem)
        if stem in frames.double or name in masks.double:
            faults.append((stem, "several files of this name with different endings"))
        elif person is None:
            # as a patient of its own, one person's images would be trained on and validated on
            faults.append((stem, "the patient rule does not match the image's name, so whose it is is not known"))
        else:
            cases[stem] = RawCase(stem, person, {"image": frames.files[stem], "label": masks.files[name]})
    return Found(cases, tuple(faults), frames.ignored + masks.ignored)


@dataclass(frozen=True)
class PairReader:
    """Reads a pair: one slice, its label values by a rule."""

    rule: LabelRule = LabelRule()

    def __call__(self, case: RawCase) -> Decoded:
        """The image and its label values.

        Raises:
            Fault: a file is damaged, sizes differ, or the rule does not foresee a stored value.
        """
        image, label = read_image(case.files["image"]), read_label(case.files["label"], self.rule)
        if image.shape[:2] != label.shape:
            sizes = [f"{pixels.shape[1]} x {pixels.shape[0]} px" for pixels in (image, label)]
            raise Fault(f"image {sizes[0]} and mask {sizes[1]} differ")
        return Decoded(((image, label),))


def _claims(
    images: dict[str, Path], labels: dict[str, Path], suffixes: Sequence[str], prefix: str, odd_suffix: str
) -> dict[str, list[str]]:
    """Stems of the masks that an image may have, by the image's stem."""
    claims: dict[str, list[str]] = {}
    odd: set[str] = set()
    for stem in images:
        folder, slash, name = stem.rpartition("/")
        start = f"{folder}{slash}{prefix}{name}"
        claims[stem] = [start + suffix for suffix in suffixes if start + suffix in labels]
        if odd_suffix and not claims[stem] and name.endswith("_") and start + odd_suffix in labels:
            claims[stem] = [start + odd_suffix]
            odd.add(start + odd_suffix)
    # the odd one's mask is no second one of an image that has its own
    return {stem: [mask for mask in names if mask not in odd] or names for stem, names in claims.items()}


def _match(
    claims: dict[str, list[str]], labels: dict[str, Path], suffixes: Sequence[str], prefix: str
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The mask's stem by the image's stem; `(stem, fault)` of what has no partner, or not one of its own."""
    matched, faults = {}, []
    claimed = Counter(mask for names in claims.values() for mask in names)
    for stem, names in claims.items():
        if len(names) != 1:
            faults.append((stem, "the image has several masks" if names else "the image has no mask"))
        elif claimed[names[0]] > 1:
            # which of them it shows cannot be known, and one of them would be trained on another's outline
            faults.append((stem, "the image's mask is another image's too, by its name"))
        else:
            matched[stem] = names[0]
    for mask in sorted(labels.keys() - claimed.keys()):
        folder, slash, name = mask.rpartition("/")
        suffix = next((s for s in suffixes if s and name.endswith(s)), "")
        stem = f"{folder}{slash}{name.removeprefix(prefix).removesuffix(suffix)}"
        faults.append((stem, "the mask has no image"))
    return matched, faults
