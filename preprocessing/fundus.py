"""Optic disc and cup in colour fundus photographs: REFUGE, ORIGA, G1020, Drishti-GS1, RIM-ONE, and other sites in
these layouts.

Sites: one folder each directly in RAW, with the name that the study uses. In it, at any depth, as published:
  REFUGE       Training400/*/g0001.jpg, Annotation-Training400/Disc_Cup_Masks/*/g0001.bmp, and the same for
               validation and test; mask values 0 cup, 128 rim, 255 background. Or train/Images, train/Masks.
  ORIGA        Images/001.jpg; Masks/001.png with 0 background, 1 rim, 2 cup, or
               Semi-automatic-annotations/001.mat with the same values in `mask`.
  G1020        Images/image_0.jpg, Masks/image_0.png with 0, 1, 2; some eyes have no cup. The JSON outlines next to
               the images are the source of the masks and are ignored.
  Drishti-GS1  Training/Images/x.png, Training/GT/x/SoftMap/x_ODsegSoftmap.png and x_cupsegSoftmap.png; the
               same for Test, whose GT is Test_GT in some releases.
  RIM-ONE      r3: "Stereo Images"/x.jpg with Expert1_masks/x-1-Disc-exp1.png and x-1-Cup-exp1.png (-1 may be
               missing); the left half is used, because it is the marked one. DL: images x.png and masks
               x-1-Disc-T.png, x-1-Cup-T.png, drawn by the script of the release; of the two partitions of the
               same images, the one by hospital is read.
  others       images/x.png and labels/x.png with 0/1/2 or 0/128/255 as above (the 512 px crops of pOSAL), or
               labels/x_OD.tif, a mask of the disc alone (IDRiD).
These layouts are from memory and from public code; only the crops and IDRiD were available here. Second copies
(Images_Square, Images_Cropped, partitioned_randomly) and masks of further experts are ignored.

Label values: rim 1, cup 2. The whole disc is 1 and 2, so the study decides whether "disc" includes the cup, without
another conversion. `{name: disc, values: [1, 2]}` is the disc of the clinic and of the papers' tables.
`{name: disc, values: [1]}` is the rim, which the reference code trains as the disc of REFUGE, ORIGA, G1020 and
Drishti-GS1.

Options:
  --structures disc-cup | disc   default disc-cup, data set "fundus". disc: rim and cup are merged into one structure,
      disc = 1, of the data set "fundus-disc". It is required for a site without masks of the cup, which would be
      trained as "no cup" otherwise.
  --experts 1..4   default 3: soft maps of Drishti-GS1 are means of four experts; a pixel counts if at least this many
      marked it. 3 is the majority. The reference code uses 2 (stored value of 100 or more).

Patients: file names do not identify patients, so each image is a separate patient. G1020 has 1020 images of 432
people (its article), so its training/validation split may have a person on both sides. If you have the list of its
patients, convert it with `pairs` and a patient rule.

Licence: this software grants no right to the data, and none of the terms was verified. REFUGE: challenge data, unclear,
ask at refuge.grand-challenge.org. ORIGA: on request to its authors (A*STAR, Singapore). G1020: research, from its
authors (DFKI, Kaiserslautern). Drishti-GS1: research use with citation, cvit.iiit.ac.in. RIM-ONE: research,
github.com/miag-ull/rim-one-dl. IDRiD: CC BY 4.0. Check the terms before you use or share anything.

Citations: Orlando et al., MedIA 59, 2020 (REFUGE); Zhang et al., EMBC 2010 (ORIGA); Bajwa et al., IJCNN 2020
(G1020); Sivaswamy et al., ISBI 2014 (Drishti-GS1); Fumero et al., CBMS 2011 and 2015 (RIM-ONE); Porwal et al.,
Data 3, 2018 (IDRiD); Wang et al., TMI 38, 2019 (pOSAL, the crops).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from fedfms.data.manifest import LabelClass
from fedfms.errors import DataError
from fedfms.preprocessing.annotations import read_marked, read_values
from fedfms.preprocessing.images import Fault, as_fault, check_size, read_image
from fedfms.preprocessing.recipe import Decoded, Found, Pixels, RawCase, Recipe, add_choice, chosen
from fedfms.preprocessing.sitefiles import SEVERAL, Paths, SiteFiles, sites_with_masks, sort_files

NAME = "fundus"
HELP = "optic disc and cup: REFUGE, ORIGA, G1020, Drishti-GS1, RIM-ONE"
SITES = ("REFUGE", "ORIGA", "G1020", "Drishti-GS1", "RIM-ONE")
RIM, CUP = 1, 2
_EXPERTS = 4  # per image of Drishti-GS1
_TABLES = ({0: 0, 1: RIM, 2: CUP}, {255: 0, 128: RIM, 0: CUP})  # label value by stored value
_SOFT = "softmap"
_STEREO = "stereo images"
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
# second copies of the same eyes, pictures of annotations, and masks of other experts, by a folder in the path
_LEFT_OUT = frozenset({
    "__macosx", "disc_cup_fovea_illustration", "images_square", "masks_square", "images_cropped", "masks_cropped",
    "nerveremoved_images", "partitioned_randomly", "expert2_masks", "average_masks",
})  # fmt: skip
_LABEL_FOLDERS = frozenset({"labels", "masks", "disc_cup_masks", "semi-automatic-annotations"})
_SUFFIXES = {
    "disc": ("_ODsegSoftmap", "-1-Disc-T", "-Disc-T", "-1-Disc-exp1", "-Disc-exp1", "_OD"),
    "cup": ("_cupsegSoftmap", "-1-Cup-T", "-Cup-T", "-1-Cup-exp1", "-Cup-exp1"),
}
# masks of other structures and grades of other data sets, in the same folders (IDRiD)
_OTHER_MASKS = ("_MA", "_HE", "_EX", "_SE")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options."""
    add_choice(parser, "--structures", ("disc-cup", "disc"))
    parser.add_argument(
        "--experts", type=int, choices=range(1, _EXPERTS + 1), default=3,
        help="experts, of Drishti-GS1's four, who must agree (default 3; the reference code: 2)",
    )  # fmt: skip


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    whole = arguments.structures == "disc"
    structures = (LabelClass("disc", 1),) if whole else (LabelClass("rim", RIM), LabelClass("cup", CUP))
    return Recipe(
        dataset=f"{NAME}-disc" if whole else NAME,
        structures=structures,
        sites=site_names,
        find=FundusFinder(need_cup=not whole),
        read=FundusReader(whole=whole, experts=arguments.experts),
        options=chosen(arguments, "structures", "experts"),
    )


def site_names(raw: Path) -> list[str]:
    """As `Recipe.sites`: folders with images and masks."""
    return sites_with_masks(raw, _sort, ("disc", "label"))


@dataclass(frozen=True)
class FundusFinder:
    """Cases of a site; each image is a separate patient, because names do not identify patients."""

    need_cup: bool  # a case without a mask of the cup is a fault

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`; a site without any cup is an error if the cup is needed."""
        files = _sort(raw / site)
        roles = files.roles
        if self.need_cup and roles["disc"] and not roles["cup"] and not roles["label"]:
            raise DataError(
                "only the disc is marked, so the site cannot train or score the cup", where=f"site {site}",
                do="convert it with --structures disc, for a study of the disc alone",
            )  # fmt: skip
        return files.match(self._match)

    def _match(self, stem: str, files: Paths) -> RawCase | str:
        if "image" not in files:
            return "the mask has no image"
        masks = {role: paths for role, paths in files.items() if role != "image"}
        if "label" in masks:
            # ORIGA has both kinds: the PNG has the size of the image, the MATLAB file not always
            masks["label"] = [path for path in masks["label"] if path.suffix.lower() != ".mat"] or masks["label"]
        if len(files["image"]) > 1 or any(len(paths) > 1 for paths in masks.values()):
            return SEVERAL
        if "label" in masks:
            masks = {"label": masks["label"]}
        elif "disc" not in masks:
            return "the image has no mask"
        elif self.need_cup and "cup" not in masks:
            return "the image has no mask of the cup"
        return RawCase(stem, stem, {role: paths[0] for role, paths in {"image": files["image"], **masks}.items()})


def _sort(folder: Path) -> SiteFiles:
    """The files of a site's folder."""
    files = sort_files(folder, _role)
    roles = files.roles
    for image in list(roles["image"]):
        # in an image's own name, `_OD` means the right eye, and a mask of this name shows both structures
        eye = image.removesuffix("_OD")
        paths = roles["disc"].pop(eye, []) if image.endswith("_OD") else []
        for path in paths:
            if path.stem == image:
                roles["label"][image].append(path)
            else:
                roles["disc"][eye].append(path)
    return files


def _role(name: Path) -> tuple[str, str]:
    """Role of a file and stem of its image; ("", "") for files that are not used."""
    folders = {part.lower() for part in name.parts[:-1]}
    kind, stem = name.suffix.lower(), name.stem
    if folders & _LEFT_OUT:
        return "", ""
    if kind == ".mat":
        return ("label", stem) if "semi-automatic-annotations" in folders else ("", "")
    if kind not in _IMAGES:
        return "", ""
    if "images" in folders:
        return "image", stem
    if stem.endswith(_OTHER_MASKS):
        return "", ""
    for role, suffixes in _SUFFIXES.items():
        for suffix in suffixes:
            if stem.endswith(suffix):
                return role, stem.removesuffix(suffix)
    return ("label" if folders & _LABEL_FOLDERS else "image"), stem


@dataclass(frozen=True)
class FundusReader:
    """Reads a photograph and its label values."""

    whole: bool  # rim and cup are one structure, the disc
    experts: int  # experts, of four, who must have marked a pixel of a soft map

    def __call__(self, case: RawCase) -> Decoded:
        """As `Recipe.read`; masks that cannot be disc and cup are a fault."""
        files = case.files
        image = read_image(files["image"])
        if files["image"].parent.name.lower() == _STEREO:
            image = image[:, : image.shape[1] // 2]
        if "label" in files:
            label = _label_values(_read_stored(files["label"]))
        else:
            label = self._marked(files["disc"], image).astype(np.uint8)
            if "cup" in files:
                label[self._marked(files["cup"], image)] = CUP
        check_size(image, label)
        if not label.any():
            raise Fault("the mask shows no disc, but every photograph of this data set has one")
        return Decoded(((image, np.minimum(label, 1) if self.whole else label),))

    def _marked(self, path: Path, image: Pixels) -> NDArray[np.bool_]:
        """Where a mask of one structure marks it, (H, W) of the image."""
        if _SOFT not in path.stem.lower():
            marked = read_marked(path)
            if marked.shape[1] // 2 == image.shape[1] and marked.shape[0] == image.shape[0]:
                marked = marked[:, : image.shape[1]]  # drawn on both views of a stereo image
        else:
            # stored: 255 times the share of experts; half a step below, because rounding differs between releases
            marked = read_values(path) >= (self.experts - 0.5) / _EXPERTS * 255
        check_size(image, marked)
        if _fills_border(marked):
            raise Fault("most of the mask's border is marked, so it is inverted or not a mask of disc or cup")
        return marked


def _read_stored(path: Path) -> NDArray[np.generic]:
    """Stored values (H, W) of a mask of both structures."""
    if path.suffix.lower() != ".mat":
        return read_values(path)
    with as_fault("mask"):
        values = np.asarray(loadmat(path, variable_names=["mask"]).get("mask"))
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise Fault("the mask's MATLAB file has no variable `mask` that is a matrix of numbers")
    return values


def _label_values(stored: NDArray[np.generic]) -> Pixels:
    """Label values (H, W) of stored values under the table that covers them; the border shows a wrong table."""
    present = set(np.unique(stored).tolist())
    for table in _TABLES:
        if present <= table.keys():
            label = np.zeros(stored.shape, dtype=np.uint8)
            for source, value in table.items():
                label[stored == source] = value
            # a black mask fits both tables; by the first it shows no disc, which the reader reports
            if _fills_border(label > 0):
                raise Fault("most of the mask's border is disc or cup, so its values are not 0/1/2 or 255/128/0")
            return label
    unknown = sorted(present - {value for table in _TABLES for value in table})[:8]
    raise Fault(f"the mask has values {unknown or sorted(present)}; known are 0/1/2 and 255/128/0")


def _fills_border(marked: NDArray[np.bool_]) -> bool:
    """Whether more than half of the outermost pixels (of H, W) are marked. A disc may touch the border, not fill it."""
    edge = np.concatenate((marked[0], marked[-1], marked[:, 0], marked[:, -1]))
    return bool(edge.mean() > 0.5)
