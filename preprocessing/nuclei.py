"""Nuclei in H&E-stained sections: PanNuke, MoNuSAC2020, MoNuSeg2018, TNBC, and other sites in these layouts.

Sites: one folder each directly in RAW, with the name that the study uses. In it, at any depth, as published:
  PanNuke      any folder name; its tissues are the sites (Adrenal_gland, Esophagus, Bile-duct, Uterus):
               "Fold 1"/images/fold1/images.npy (N, 256, 256, 3) and types.npy (N texts), "Fold 1"/masks/fold1/
               masks.npy (N, 256, 256, 6): instance numbers by kind of nucleus; the sixth channel is background.
  MoNuSAC2020  "MoNuSAC_images_and_annotations"/TCGA-.../TCGA-..._1.tif with .xml (and .svs, which is read if there
               is no TIF); "MoNuSAC Testing Data and Annotations" alike. Aperio XML, one annotation per class.
  MoNuSeg2018  "Tissue Images"/TCGA-....tif, Annotations/TCGA-....xml; test images next to their XML.
  TNBC         Slide_01/01_1.png, GT_01/01_1.png; slides 12 to 14 of the second release show brain and are ignored.
  others       images/x.png (or tif, jpg) with labels/x.png, 0 for background; or labels/x_data.xml or x.xml, outlines;
               or labels/x/*.png, one mask per nucleus (DSB 2018; also as published, x/images/x.png, x/masks/*.png).
The layouts of PanNuke, MoNuSAC2020 and TNBC are from memory and from public code; the others were available here.

Structure: nucleus, 1: every instance of every kind, merged. Touching nuclei become one region.

Label rule: an outline is filled where the centre of a pixel lies inside, without the half pixel that drawing its line
would add. Parts outside the image are cut off. In a mask, every value above 0 is nucleus.

Options:
  --tissues A,B,...    default Adrenal_gland,Esophagus,Bile-duct,Uterus, the four of the paper. The sites to make of
      PanNuke, by the names in types.npy; each site gets the name given here.
  --ambiguous background | nucleus   default background. The test images of MoNuSAC have outlines "Ambiguous", of nuclei
      that are faint or cannot be separated; its challenge does not score them as nuclei.

Patients: the first three fields of a TCGA barcode; in TNBC, the slide, each of another person. In PanNuke, Emory and
DSB names do not identify patients, so each image is a separate patient, and patches of one PanNuke slide may lie on
both sides of a split. Images of one TCGA patient at two sites (MoNuSAC, MoNuSeg, PanNuke) are not detected either.

Licence: this software grants no right to the data. PanNuke: CC BY-NC-SA 4.0, warwick.ac.uk/fac/cross_fac/tia.
MoNuSAC2020 and MoNuSeg2018: CC BY-NC-SA 4.0, monusac-2020 and monuseg at grand-challenge.org. TNBC: CC BY 4.0,
zenodo.org/record/1175282. DSB 2018: CC0 (BBBC038). Emory GBM40 and the outlines of TCGA images: none stated. All of
this is from memory. Check the terms before you use or share anything.

Citations: Gamper et al., ECDP 2019 and arXiv 2003.10778 (PanNuke); Verma et al., TMI 40, 2021 (MoNuSAC); Kumar et
al., TMI 36, 2017 and 39, 2020 (MoNuSeg); Naylor et al., TMI 38, 2019 (TNBC); Zhang, Kong et al., ISBI 2016/2017
(Emory, TCGA); Caicedo et al., Nat Methods 16, 2019 (DSB 2018).
"""

import argparse
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedfms.data.manifest import LabelClass
from fedfms.preprocessing.annotations import fill, merge_instances, read_marked, read_outlines
from fedfms.preprocessing.images import Fault, as_fault, check_size, read_image
from fedfms.preprocessing.nuclei_pannuke import find_folds, find_patches, letters, read_patch, read_tissues
from fedfms.preprocessing.recipe import Decoded, Found, Pixels, RawCase, Recipe, add_choice, chosen
from fedfms.preprocessing.sitefiles import SEVERAL, Paths, SiteFiles, sites_with_masks, sort_files

NAME = "nuclei"
HELP = "nuclei in H&E: PanNuke by tissue, MoNuSAC2020, MoNuSeg2018, TNBC"
TISSUES = ("Adrenal_gland", "Esophagus", "Bile-duct", "Uterus")
SITES = (*TISSUES, "MoNuSAC2020", "TNBC", "MoNuSeg2018")
_AMBIGUOUS = "ambiguous"
_ANNOTATIONS = ("outlines", "mask", "instances")  # roles: XML, a mask of all nuclei, masks of one nucleus each
_IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".svs")
_LEFT_OUT = "__macosx"
_LABEL_FOLDERS = frozenset({"labels", "masks"})
_XML_SUFFIX = "_data"  # a.xml or a_data.xml belongs to a.tif
_TCGA = re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}", re.IGNORECASE)
_TNBC = re.compile(r"(Slide|GT)_(\d+)", re.IGNORECASE)
_TNBC_LAST = 11  # slides 12 to 14 of the second release show brain


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options."""
    parser.add_argument(
        "--tissues", type=_tissues, default=TISSUES, metavar="A,B",
        help=f"tissues of PanNuke, which become sites (default {','.join(TISSUES)})",
    )  # fmt: skip
    add_choice(parser, "--ambiguous", ("background", "nucleus"))


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    return Recipe(
        dataset=NAME,
        structures=(LabelClass("nucleus", 1),),
        sites=NucleiSites(arguments.tissues),
        find=NucleiFinder(arguments.tissues),
        read=NucleiReader(ambiguous=arguments.ambiguous == "nucleus"),
        options=chosen(arguments, "ambiguous"),
    )


@dataclass(frozen=True)
class NucleiSites:
    """The sites in a raw folder: folders, and the chosen tissues in the folds of PanNuke."""

    tissues: tuple[str, ...]

    def __call__(self, raw: Path) -> list[str]:
        """As `Recipe.sites`; an incomplete fold of PanNuke is an error."""
        folders = sites_with_masks(raw, _sort, _ANNOTATIONS)
        found = {letters(name) for fold in find_folds(raw) for name in read_tissues(fold)}
        return sorted({*folders, *(tissue for tissue in self.tissues if letters(tissue) in found)})


@dataclass(frozen=True)
class NucleiFinder:
    """Cases of a site: of a tissue of PanNuke, or of a folder."""

    tissues: tuple[str, ...]

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`."""
        if site in self.tissues and not (raw / site).is_dir():
            return find_patches(find_folds(raw), site)
        return _sort(raw / site).match(_match)


def patient(image: Path) -> str:
    """The patient of an image: the first three fields of a TCGA barcode, or the number of a TNBC slide.

    Each TNBC slide is of another person. Other names do not identify patients: the image is a separate patient.
    """
    barcode = _TCGA.match(image.name)
    if barcode:
        return barcode.group().upper()
    slide = _TNBC.fullmatch(image.parent.name)
    return f"slide {int(slide.group(2))}" if slide else image.stem


def _match(stem: str, files: Paths) -> RawCase | str:
    images = files.pop("image", [])
    instances = {f"mask {number}": path for number, path in enumerate(files.pop("instances", []))}
    if not images:
        return "the annotation has no image"
    if len(images) > 1 or any(len(paths) > 1 for paths in files.values()):
        return SEVERAL
    if not files and not instances:
        return "the image has no annotation"
    if len(files) + bool(instances) > 1:
        return "the image has annotations of several kinds"
    single = {role: paths[0] for role, paths in files.items()}
    return RawCase(stem, patient(images[0]), {"image": images[0], **single, **instances})


def _sort(folder: Path) -> SiteFiles:
    """The files of a site's folder; of an image with an SVS next to a TIF (MoNuSAC), the SVS is not used."""
    files = sort_files(folder, _role)
    for stem, images in files.roles["image"].items():
        slides = [path for path in images if path.suffix.lower() == ".svs"]
        if len(slides) < len(images):
            files.roles["image"][stem] = [path for path in images if path not in slides]
            files.unused.extend(slides)
    return files


def _role(name: Path) -> tuple[str, str]:
    """Role of a file and stem of its image; ("", "") for files that are not used."""
    folders, kind, stem = name.parts[:-1], name.suffix.lower(), name.stem
    lower = [part.lower() for part in folders]
    if _LEFT_OUT in (*lower, name.name.lower()):
        return "", ""
    if kind == ".xml":
        return "outlines", stem.removesuffix(_XML_SUFFIX)
    if kind not in _IMAGES:
        return "", ""
    slide = _TNBC.fullmatch(folders[-1]) if folders else None
    if slide:
        if int(slide.group(2)) > _TNBC_LAST:
            return "", ""
        return ("image" if slide.group(1).lower() == "slide" else "mask"), stem
    if lower[-1:] == ["masks"] and len(folders) > 1:
        return "instances", folders[-2]  # <id>/masks/<nucleus>.png, as DSB 2018 was published
    if len(lower) > 1 and lower[-2] in _LABEL_FOLDERS:
        return "instances", folders[-1]  # labels/<id>/<nucleus>.png
    return ("mask" if lower and lower[-1] in _LABEL_FOLDERS else "image"), stem


@dataclass(frozen=True)
class NucleiReader:
    """Reads an image and its nuclei."""

    ambiguous: bool  # ambiguous outlines are nuclei

    def __call__(self, case: RawCase) -> Decoded:
        """As `Recipe.read`; an annotation of an unknown kind is a fault."""
        if case.part is not None:
            return read_patch(case)
        files = case.files
        image = _read_slide(files["image"]) if files["image"].suffix.lower() == ".svs" else read_image(files["image"])
        if "outlines" in files:
            wanted = (o for o in read_outlines(files["outlines"]) if self.ambiguous or o.kind.lower() != _AMBIGUOUS)
            label = fill(wanted, *image.shape[:2])
        elif "mask" in files:
            label = read_marked(files["mask"]).astype(np.uint8)
        else:
            label = merge_instances(path for role, path in files.items() if role != "image")
        check_size(image, label)
        return Decoded(((image, label),))


def _read_slide(path: Path) -> Pixels:
    """Pixels (H, W, 3) of a small SVS: the first page is the tile at full size, the others are previews."""
    try:
        with as_fault("image"), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("TIFF",)) as opened:
                return np.asarray(opened.convert("RGB"))
    except Fault as fault:
        raise Fault(f"{fault}; write the SVS as TIF with the viewer of its manufacturer") from fault


def _tissues(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or any(c in text for c in "/\\\0") or any(name.startswith(".") for name in names):
        raise argparse.ArgumentTypeError("must be names of tissues, separated by commas")
    return names
