"""Nuclei in H&E-stained sections: PanNuke, MoNuSAC2020, MoNuSeg2018, TNBC, and any site of the same layouts.

Sites: a folder each directly in RAW, under the name that the study uses; in it, at any depth, as published:
  PanNuke      any folder name, for its tissues are the sites (Adrenal_gland, Esophagus, Bile-duct, Uterus):
               "Fold 1"/images/fold1/images.npy (N, 256, 256, 3) and types.npy (N texts), "Fold 1"/masks/fold1/
               masks.npy (N, 256, 256, 6): instance numbers by kind of nucleus, the sixth channel background.
  MoNuSAC2020  "MoNuSAC_images_and_annotations"/TCGA-.../TCGA-..._1.tif with .xml (and .svs, read where there
               is no TIF); "MoNuSAC Testing Data and Annotations" alike. Aperio XML, a class an annotation.
  MoNuSeg2018  "Tissue Images"/TCGA-....tif, Annotations/TCGA-....xml; test images beside their XML.
  TNBC         Slide_01/01_1.png, GT_01/01_1.png; slides 12 to 14 of the second release are brain, left alone.
  others       images/x.png (or tif, jpg) with labels/x.png, 0 elsewhere; or labels/x_data.xml or x.xml, outlines;
               or labels/x/*.png, a mask a nucleus (DSB 2018; also as published, x/images/x.png, x/masks/*.png).
PanNuke, MoNuSAC2020 and TNBC are as remembered and as public code reads them; the others were seen here.

Structure: nucleus, 1: every instance of every kind, merged. Touching nuclei become one region.

Licences: nothing here grants any right to the data. PanNuke: CC BY-NC-SA 4.0, warwick.ac.uk/fac/cross_fac/tia.
MoNuSAC2020 and MoNuSeg2018: CC BY-NC-SA 4.0, monusac-2020 and monuseg at grand-challenge.org. TNBC: CC BY 4.0,
zenodo.org/record/1175282. DSB 2018: CC0 (BBBC038). All of these as remembered; Emory GBM40 and the outlines of
TCGA images: none stated. Check before you use or pass on anything.

Citations: Gamper et al., ECDP 2019 and arXiv 2003.10778 (PanNuke); Verma et al., TMI 40, 2021 (MoNuSAC); Kumar et
al., TMI 36, 2017 and 39, 2020 (MoNuSeg); Naylor et al., TMI 38, 2019 (TNBC); Zhang, Kong et al., ISBI 2016/2017
(Emory, TCGA); Caicedo et al., Nat Methods 16, 2019 (DSB 2018).

Label rule: an outline is filled where a pixel's centre lies inside it, without the half pixel that drawing its
line would add all round; what lies outside the image is cut off. A mask marks what is above 0.

Options:
  --tissues A,B,...    default the paper's four: Adrenal_gland,Esophagus,Bile-duct,Uterus. The sites to make of
      PanNuke, by the names in types.npy; each is written under the name given here.
  --ambiguous background | nucleus   default background: MoNuSAC's test images have outlines "Ambiguous", of
      nuclei that are faint or cannot be told apart; its challenge does not score them as nuclei.

Patients: the first three fields of a TCGA barcode; TNBC's slides, one person each. In PanNuke, Emory and DSB no
name tells whose tissue it is, so each image is a patient of its own; PanNuke's patches of one slide may then lie
on both sides of a split. Images of one TCGA patient at two sites (MoNuSAC, MoNuSeg, PanNuke) are not found either.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedfms.data.manifest import LabelClass
from preprocessing.annotations import check_size, fill, merge_instances, read_marked, read_outlines
from preprocessing.images import Fault, read_image
from preprocessing.nuclei_files import find_cases, site_folders
from preprocessing.nuclei_pannuke import find_folds, find_patches, plain, read_patch, read_tissues
from preprocessing.recipe import Decoded, Found, Pixels, RawCase, Recipe

NAME = "nuclei"
HELP = "nuclei in H&E: PanNuke by tissue, MoNuSAC2020, MoNuSeg2018, TNBC"
TISSUES = ("Adrenal_gland", "Esophagus", "Bile-duct", "Uterus")
SITES = (*TISSUES, "MoNuSAC2020", "TNBC", "MoNuSeg2018")
_AMBIGUOUS = "ambiguous"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options."""
    parser.add_argument(
        "--tissues", type=_tissues, default=TISSUES, metavar="A,B",
        help=f"of PanNuke, which become sites (default {','.join(TISSUES)})",
    )  # fmt: skip
    parser.add_argument(
        "--ambiguous", choices=("background", "nucleus"), default="background",
        help="what MoNuSAC's ambiguous outlines are (default background)",
    )  # fmt: skip


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    return Recipe(
        dataset=NAME,
        structures=(LabelClass("nucleus", 1),),
        sites=Sites(arguments.tissues),
        find=Find(arguments.tissues),
        read=Read(ambiguous=arguments.ambiguous == "nucleus"),
        options={"ambiguous": arguments.ambiguous},
    )


@dataclass(frozen=True)
class Sites:
    """Names of the sites that a raw folder holds: folders, and the tissues of PanNuke that are there."""

    tissues: tuple[str, ...]

    def __call__(self, raw: Path) -> list[str]:
        """As `Recipe.sites`.

        Raises:
            DataError: the folder cannot be read, or a fold of PanNuke is not whole.
            Fault: a file of PanNuke lies outside the folder.
        """
        there = {plain(name) for fold in find_folds(raw) for name in read_tissues(fold)}
        return sorted({*site_folders(raw), *(tissue for tissue in self.tissues if plain(tissue) in there)})


@dataclass(frozen=True)
class Find:
    """Cases of a site, be it a tissue of PanNuke or a folder."""

    tissues: tuple[str, ...]

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`.

        Raises:
            DataError, Fault: as `Sites`.
            OSError: a folder of the site cannot be read.
        """
        if site in self.tissues and not (raw / site).is_dir():
            return find_patches(find_folds(raw), site)
        return find_cases(raw, site)


@dataclass(frozen=True)
class Read:
    """One image and where its nuclei are.

    Args:
        ambiguous: outlines that are named so count as nuclei.
    """

    ambiguous: bool

    def __call__(self, case: RawCase) -> Decoded:
        """As `Recipe.read`.

        Raises:
            Fault: a file is damaged, sizes differ, or the annotation is of no known kind.
        """
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
    """Pixels (H, W, 3) of a small SVS: the first page is the tile at full size, others are its previews.

    Raises:
        Fault: damaged, too large, or compressed in a way that Pillow does not know.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("TIFF",)) as opened:
                return np.asarray(opened.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Fault(f"the image has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside Pillow
        raise Fault("the image cannot be read; write the SVS as TIF with the maker's viewer") from error


def _tissues(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or any(c in text for c in "/\\\0") or any(name.startswith(".") for name in names):
        raise argparse.ArgumentTypeError("must be names of tissues, separated by commas")
    return names
