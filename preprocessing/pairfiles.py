"""Folders of images and masks: match the files to pairs, assign patients, read a pair."""

import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedfms.errors import DataError
from fedfms.preprocessing.images import ENDINGS, LabelRule, check_size, read_image, read_label
from fedfms.preprocessing.raw import LINKED_FOLDER, is_folder, readable, require_folder, sites_where, walk
from fedfms.preprocessing.recipe import Decoded, Found, RawCase
from fedfms.preprocessing.sitefiles import SEVERAL, Paths

IMAGES, LABELS = "images", "labels"
PatientRule = Callable[[str, str], str | None]  # patient by site and image stem; None if the rule does not match


def pair_sites(raw: Path) -> list[str]:
    """Names of the folders directly below a raw folder that hold `images/` and `labels/`."""
    return sites_where(raw, lambda folder: all(is_folder(folder / part) for part in (IMAGES, LABELS)))


@dataclass(frozen=True)
class OneSite:
    """The site of a raw folder that itself holds `images/` and `labels/`."""

    name: str

    def __call__(self, raw: Path) -> list[str]:
        """As `Recipe.sites`; a missing folder is an error."""
        for part in (IMAGES, LABELS):
            require_folder(raw / part, f"{part}/ in --raw")
        return [self.name]


@dataclass
class Listing:
    """Files of a folder by stem relative to it, links to folders, and the number of files of other kinds."""

    files: Paths = field(default_factory=lambda: defaultdict(list))
    linked: list[str] = field(default_factory=list)
    ignored: int = 0


def image_stem(path: Path) -> str:
    """The name of a flat image's file without its ending; "" for other files."""
    return path.stem if path.suffix.lower() in ENDINGS else ""


def list_files(
    folder: Path,
    site: str,
    stem_of: Callable[[Path], str] = image_stem,
    foreign: Callable[[Path], str] | None = None,
) -> Listing:
    """The files below a folder.

    Args:
        stem_of: the stem of a file; "" for a file of another kind, which is counted.
        foreign: not "" for a file whose presence is an error.

    Raises:
        DataError: the folder cannot be read, or it holds a foreign file.
    """
    listing = Listing()
    with readable(f"a folder in {folder.name}/", site=site):
        for path in sorted(path for path in walk(folder) if not path.name.startswith(".")):
            mode, name = _mode(path), path.relative_to(folder)
            if stat.S_ISDIR(mode):
                listing.linked.append(name.as_posix())
            elif stat.S_ISREG(mode) and stem_of(path):
                listing.files[(name.parent / stem_of(path)).as_posix()].append(path)
            elif foreign and foreign(path):
                what = f"{folder.name}/ holds files of another kind than `kind` in the rule file"
                raise DataError(what, where=f"site {site}", do="set `kind`, and put files of one kind only in a folder")
            else:
                listing.ignored += stat.S_ISREG(mode)
    return listing


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return stat.S_IFREG  # a broken link: reading the case reports it


@dataclass(frozen=True)
class PairFinder:
    """Pairs of a site: the mask of `images/a.jpg` is `labels/a` + one of `mask_suffixes` + any ending."""

    mask_suffixes: tuple[str, ...]
    patient: PatientRule
    listing: Callable[[Path, str], Listing]  # lists `images/` or `labels/` of a site

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`: cases with the files "image" and "label", by the image's stem relative to `images/`.

        An unreadable folder is an error; otherwise the slices of its images would be removed as withdrawn.
        """
        images, masks = self.listing(raw / IMAGES, site), self.listing(raw / LABELS, site)
        return match_pairs(site, images, masks, self.mask_suffixes, self.patient)


def match_pairs(
    site: str, images: Listing, masks: Listing, suffixes: Sequence[str], patient: PatientRule, prefix: str = "",
    odd_suffix: str = "",
) -> Found:  # fmt: skip
    """Pairs of two folders: the mask of `a.jpg` is `prefix` + `a` + one of `suffixes` + any ending.

    Args:
        odd_suffix: for an image whose stem ends in `_` and that has no such mask.

    Returns:
        Cases with the files "image" and "label", by the image's stem relative to its folder.
    """

    def entries() -> Iterator[tuple[str, RawCase | str]]:
        claims = _claims(images.files, masks.files, suffixes, prefix, odd_suffix)
        claimed = Counter(mask for names in claims.values() for mask in names)
        for stem, names in claims.items():
            if len(names) != 1:
                yield stem, "the image has several masks" if names else "the image has no mask"
            elif claimed[names[0]] > 1:
                # one of the images would be trained on the outline of another
                yield stem, "the image's mask also matches another image by its name"
            else:
                yield stem, _case(site, stem, images.files[stem], masks.files[names[0]], patient)
        for mask in sorted(masks.files.keys() - claimed.keys()):
            folder, slash, name = mask.rpartition("/")
            suffix = next((s for s in suffixes if s and name.endswith(s)), "")
            yield f"{folder}{slash}{name.removeprefix(prefix).removesuffix(suffix)}", "the mask has no image"
        for name in images.linked + masks.linked:
            yield name, LINKED_FOLDER

    return Found.collect(entries(), images.ignored + masks.ignored)


def _case(site: str, stem: str, images: list[Path], masks: list[Path], patient: PatientRule) -> RawCase | str:
    if len(images) > 1 or len(masks) > 1:
        return f"{SEVERAL} with different endings"
    person = patient(site, stem)
    if person is None:
        # as a separate patient, images of one person could be in training and in validation
        return "the patient rule does not match the image's name, so the patient is unknown"
    return RawCase(stem, person, {"image": images[0], "label": masks[0]})


def _claims(images: Paths, masks: Paths, suffixes: Sequence[str], prefix: str, odd_suffix: str) -> dict[str, list[str]]:
    """Stems of the masks that match an image by name, by the image's stem."""
    claims: dict[str, list[str]] = {}
    odd: set[str] = set()
    for stem in images:
        folder, slash, name = stem.rpartition("/")
        start = f"{folder}{slash}{prefix}{name}"
        claims[stem] = [start + suffix for suffix in suffixes if start + suffix in masks]
        if odd_suffix and not claims[stem] and name.endswith("_") and start + odd_suffix in masks:
            claims[stem] = [start + odd_suffix]
            odd.add(start + odd_suffix)
    # an image with a mask of its own does not claim the mask of the odd one
    return {stem: [mask for mask in names if mask not in odd] or names for stem, names in claims.items()}


@dataclass(frozen=True)
class PairReader:
    """Reads a pair as one slice, with label values by a rule."""

    rule: LabelRule = LabelRule()

    def __call__(self, case: RawCase) -> Decoded:
        """As `Recipe.read`; a stored value that the rule does not cover is a fault."""
        image, label = read_image(case.files["image"]), read_label(case.files["label"], self.rule)
        check_size(image, label)
        return Decoded(((image, label),))
