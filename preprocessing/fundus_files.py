"""What lies in a fundus site's raw folder: which file is an image, and which its masks. Names only; nothing is
opened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedfms.errors import DataError
from preprocessing.raw import shown, sites_where
from preprocessing.recipe import Found, RawCase

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
# Second copies of the same eyes, pictures of annotations, and other experts' masks, by a part of the path.
_LEFT_OUT = (
    "__macosx", "disc_cup_fovea_illustration", "images_square", "masks_square", "images_cropped", "masks_cropped",
    "nerveremoved_images", "partitioned_randomly", "expert2_masks", "average_masks",
)  # fmt: skip
_LABEL_FOLDERS = frozenset({"labels", "masks", "disc_cup_masks", "semi-automatic-annotations"})
_SUFFIXES = {
    "disc": ("_ODsegSoftmap", "-1-Disc-T", "-Disc-T", "-1-Disc-exp1", "-Disc-exp1", "_OD"),
    "cup": ("_cupsegSoftmap", "-1-Cup-T", "-Cup-T", "-1-Cup-exp1", "-Cup-exp1"),
}
# IDRiD's other structures and grades of other data sets, which lie among masks
_OTHER_MASKS = ("_MA", "_HE", "_EX", "_SE")


@dataclass(frozen=True)
class SiteFiles:
    """Files of a site by role ("image", "label", "disc", "cup") and stem, and how many are none of these."""

    roles: dict[str, dict[str, list[Path]]]
    ignored: int

    @property
    def disc_only(self) -> bool:
        """Whether nobody has marked the cup here."""
        return bool(self.roles["disc"]) and not self.roles["cup"] and not self.roles["label"]

    @property
    def usable(self) -> bool:
        """Whether there are images, and masks of a kind that is known."""
        return bool(self.roles["image"]) and bool(self.roles["disc"] or self.roles["label"])


def site_names(raw: Path) -> list[str]:
    """Folders directly below `raw` that hold images and masks, by name.

    Raises:
        DataError: `raw` cannot be read.
    """
    return sites_where(raw, lambda folder: look(folder).usable)


def look(folder: Path) -> SiteFiles:
    """Sort the files of a site's folder, at any depth.

    Raises:
        OSError: a folder in it cannot be read.
    """
    roles: dict[str, dict[str, list[Path]]] = {role: defaultdict(list) for role in ("image", "label", "disc", "cup")}
    ignored = 0
    for path in shown(folder):
        role, stem = _role(path, folder)
        if role:
            roles[role][stem].append(path)
        else:
            ignored += 1
    _right_eyes(roles)
    return SiteFiles({role: dict(found) for role, found in roles.items()}, ignored)


def find_cases(raw: Path, site: str, need_cup: bool) -> Found:
    """Cases of a site; each image is a patient of its own, for no name here says whose eye it is.

    Args:
        need_cup: whether a case without a marked cup is of no use.

    Raises:
        DataError: the site has no cup at all, and it is needed.
        OSError: a folder cannot be read.
    """
    files = look(raw / site)
    if need_cup and files.disc_only:
        raise DataError(
            "here only the disc is marked, so the site cannot train or score the cup", where=f"site {site}",
            do="convert it with --structures disc, for a study of the disc alone",
        )  # fmt: skip
    cases: dict[str, RawCase] = {}
    faults = [(stem, "the mask has no image") for stem in _without_image(files)]
    for stem, images in files.roles["image"].items():
        masks = {role: files.roles[role].get(stem, []) for role in ("label", "disc", "cup")}
        # ORIGA comes with both: the PNG is of the image's size, the MATLAB file not always
        masks["label"] = [path for path in masks["label"] if path.suffix.lower() != ".mat"] or masks["label"]
        fault = _fault(images, masks, need_cup)
        if fault:
            faults.append((stem, fault))
            continue
        chosen = {"image": images, "label": masks["label"]} if masks["label"] else {"image": images, **masks}
        cases[stem] = RawCase(stem, stem, {role: paths[0] for role, paths in chosen.items() if paths})
    return Found(cases, tuple(sorted(faults)), files.ignored)


def _role(path: Path, folder: Path) -> tuple[str, str]:
    """What a file is, and the stem of the image that it belongs to; "" for a file of no use here."""
    folders = [part.lower() for part in path.relative_to(folder).parts[:-1]]
    kind, stem = path.suffix.lower(), path.stem
    if any(part in _LEFT_OUT for part in folders):
        return "", ""
    if kind == ".mat":
        return ("label", stem) if "semi-automatic-annotations" in folders else ("", "")
    if kind not in IMAGES:
        return "", ""
    if "images" in folders:
        return "image", stem
    if stem.endswith(_OTHER_MASKS):
        return "", ""
    for role, suffixes in _SUFFIXES.items():
        for suffix in suffixes:
            if stem.endswith(suffix):
                return role, stem.removesuffix(suffix)
    return ("label" if _LABEL_FOLDERS & set(folders) else "image"), stem


def _right_eyes(roles: dict[str, dict[str, list[Path]]]) -> None:
    """Where an image's own name ends in `_OD`, it means the right eye, and a mask of this name is of both
    structures.
    """
    for image in roles["image"]:
        paths = roles["disc"].get(image.removesuffix("_OD"), []) if image.endswith("_OD") else []
        same = [path for path in paths if path.stem == image]
        if same:
            roles["label"][image] += same
            left = [path for path in paths if path not in same]
            roles["disc"].pop(image.removesuffix("_OD"))
            if left:
                roles["disc"][image.removesuffix("_OD")] = left


def _without_image(files: SiteFiles) -> Iterator[str]:
    masks = {stem for role in ("label", "disc", "cup") for stem in files.roles[role]}
    yield from sorted(masks - files.roles["image"].keys())


def _fault(images: list[Path], masks: dict[str, list[Path]], need_cup: bool) -> str:
    """Why an image and its masks make no case; "" if they do."""
    if len(images) > 1 or any(len(paths) > 1 for paths in masks.values()):
        return "several files of this name"
    if masks["label"]:
        return ""
    if not masks["disc"]:
        return "the image has no mask"
    return "the image has no mask of the cup" if need_cup and not masks["cup"] else ""
