"""What lies in a nuclei site's raw folder: images and their outlines, masks or folders of masks. Names only;
nothing is opened.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.raw import shown, sites_where
from preprocessing.recipe import Found, RawCase

_IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".svs")
_LEFT_OUT = frozenset({"__macosx"})
_LABEL_FOLDERS = frozenset({"labels", "masks"})
_XML_SUFFIX = "_data"  # a.xml or a_data.xml is of a.tif
_TCGA = re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}", re.IGNORECASE)
_TNBC = re.compile(r"(Slide|GT)_(\d+)", re.IGNORECASE)
_TNBC_LAST = 11  # the second release's slides 12 to 14 are of the brain


@dataclass
class SiteFiles:
    """Files of a site by stem: images, outlines (XML), masks of all nuclei, masks of one nucleus each; stems of
    images without any; and how many files are none of these.
    """

    images: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    outlines: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    instances: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    ignored: int = 0

    @property
    def usable(self) -> bool:
        """Whether there are images, and annotations of a kind that is known."""
        return bool(self.images) and bool(self.outlines or self.masks or self.instances)


def site_folders(raw: Path) -> list[str]:
    """Folders directly below `raw` that hold images and annotations, by name.

    Raises:
        DataError: `raw` cannot be read.
    """
    return sites_where(raw, lambda folder: look(folder).usable)


def look(folder: Path) -> SiteFiles:
    """Sort the files of a site's folder, at any depth.

    Raises:
        OSError: a folder in it cannot be read.
    """
    found = SiteFiles()
    for path in shown(folder):
        parts = path.relative_to(folder).parts
        if any(part.lower() in _LEFT_OUT for part in parts) or not _sort(path, parts[:-1], found):
            found.ignored += 1
    return found


def find_cases(raw: Path, site: str) -> Found:
    """Cases of a site's folder.

    Raises:
        OSError: a folder in it cannot be read.
    """
    files = look(raw / site)
    cases: dict[str, RawCase] = {}
    annotated = files.outlines.keys() | files.masks.keys() | files.instances.keys()
    faults = [(stem, "the annotation has no image") for stem in sorted(annotated - files.images.keys())]
    for stem, images in files.images.items():
        image, spare = _choose(images)
        files.ignored += spare
        kinds = {"outlines": files.outlines.get(stem, []), "mask": files.masks.get(stem, [])}
        single = {role: paths[0] for role, paths in kinds.items() if paths}
        instances = {f"mask {number}": path for number, path in enumerate(files.instances.get(stem, []))}
        if image is None or any(len(paths) > 1 for paths in kinds.values()):
            faults.append((stem, "several files of this name"))
        elif not single and not instances:
            faults.append((stem, "the image has no annotation"))
        elif len(single) + bool(instances) > 1:
            faults.append((stem, "the image has annotations of several kinds"))
        else:
            cases[stem] = RawCase(stem, patient(image), {"image": image, **single, **instances})
    return Found(cases, tuple(sorted(faults)), files.ignored)


def patient(image: Path) -> str:
    """Who is on an image: the first three fields of a TCGA barcode, the slide's number in TNBC, where each slide
    is of another person; otherwise the image is a patient of its own, for its name says nothing.
    """
    barcode = _TCGA.match(image.name)
    if barcode:
        return barcode.group().upper()
    slide = _TNBC.fullmatch(image.parent.name)
    return f"slide {int(slide.group(2))}" if slide else image.stem


def _sort(path: Path, folders: tuple[str, ...], found: SiteFiles) -> bool:
    """Put a file where it belongs; whether it belongs anywhere."""
    kind, stem = path.suffix.lower(), path.stem
    if kind == ".xml":
        found.outlines[stem.removesuffix(_XML_SUFFIX)].append(path)
        return True
    if kind not in _IMAGES:
        return False
    slide = _TNBC.fullmatch(folders[-1]) if folders else None
    if slide:
        if int(slide.group(2)) > _TNBC_LAST:
            return False
        (found.images if slide.group(1).lower() == "slide" else found.masks)[stem].append(path)
        return True
    lower = [part.lower() for part in folders]
    if lower and lower[-1] == "masks" and len(folders) > 1:
        found.instances[folders[-2]].append(path)  # <id>/masks/<nucleus>.png, as DSB 2018 was published
    elif len(lower) > 1 and lower[-2] in _LABEL_FOLDERS:
        found.instances[folders[-1]].append(path)  # labels/<id>/<nucleus>.png
    elif lower and lower[-1] in _LABEL_FOLDERS:
        found.masks[stem].append(path)
    else:
        found.images[stem].append(path)
    return True


def _choose(images: list[Path]) -> tuple[Path | None, int]:
    """The one image of a stem, and how many of its copies are left alone: MoNuSAC has an SVS beside each TIF."""
    plain = [path for path in images if path.suffix.lower() != ".svs"] or images
    return (plain[0] if len(plain) == 1 else None), len(images) - len(plain)
