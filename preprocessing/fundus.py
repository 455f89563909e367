"""Optic disc and cup in colour fundus photographs: REFUGE, ORIGA, G1020, Drishti-GS1, RIM-ONE, and any site of
the same layouts.

Sites: a folder each directly in RAW, under the name that the study uses; in it, at any depth, as published:
  REFUGE       Training400/*/g0001.jpg, Annotation-Training400/Disc_Cup_Masks/*/g0001.bmp, the same for
               validation and test; mask values 0 cup, 128 rim, 255 background. Or train/Images, train/Masks.
  ORIGA        Images/001.jpg; Masks/001.png with 0 background, 1 rim, 2 cup, or
               Semi-automatic-annotations/001.mat with the same values in `mask`.
  G1020        Images/image_0.jpg, Masks/image_0.png with 0, 1, 2; some eyes have no cup. The JSON outlines
               beside the images are what the masks were drawn from, and are left alone.
  Drishti-GS1  Training/Images/x.png, Training/GT/x/SoftMap/x_ODsegSoftmap.png and x_cupsegSoftmap.png; the
               same for Test, whose GT is Test_GT in some releases.
  RIM-ONE      r3: "Stereo Images"/x.jpg and Expert1_masks/x-1-Disc-exp1.png and x-1-Cup-exp1.png (the -1 may
               be missing): the left half, which is the one marked, is taken. DL: images x.png and masks
               x-1-Disc-T.png, x-1-Cup-T.png, drawn by the release's own script; of the two partitions of the
               same images, that by hospital is read.
  others       images/x.png and labels/x.png with 0/1/2 or 0/128/255 as above (the 512 px crops of pOSAL), or
               labels/x_OD.tif, a mask of the disc alone (IDRiD).
These layouts are as remembered and as public code reads them; only the crops and IDRiD were seen here. Second
copies (Images_Square, Images_Cropped, partitioned_randomly) and further experts' masks are left alone.

Licences: nothing here grants any right to the data, and none of these was read here. REFUGE: challenge data,
unclear, ask at refuge.grand-challenge.org. ORIGA: by request to its authors (A*STAR, Singapore). G1020: research,
of its authors (DFKI, Kaiserslautern). Drishti-GS1: research use with citation, cvit.iiit.ac.in. RIM-ONE: research,
github.com/miag-ull/rim-one-dl. IDRiD: CC BY 4.0. Check before you use or pass on anything.

Citations: Orlando et al., MedIA 59, 2020 (REFUGE); Zhang et al., EMBC 2010 (ORIGA); Bajwa et al., IJCNN 2020
(G1020); Sivaswamy et al., ISBI 2014 (Drishti-GS1); Fumero et al., CBMS 2011 and 2015 (RIM-ONE); Porwal et al.,
Data 3, 2018 (IDRiD); Wang et al., TMI 38, 2019 (pOSAL, the crops).

Label values: rim 1, cup 2, so the whole disc is 1 and 2. Whether "disc" includes the cup is thus the study's
choice and needs no conversion of its own: `{name: disc, values: [1, 2]}` is the disc of clinic and of the papers'
tables, `{name: disc, values: [1]}` the rim, which is what the reference code trains under that name for REFUGE,
ORIGA, G1020 and Drishti-GS1.

Options:
  --structures disc-cup | disc   default disc-cup, data set "fundus". With disc, rim and cup are merged into one
      structure, disc = 1, of the data set "fundus-disc": the only way for a site that has no cup, for what is not
      marked there would be trained as "no cup". Without it, such a site is refused.
  --experts 1..4   default 3: Drishti-GS1's soft maps are means of four experts; a pixel counts if at least so
      many marked it. 3 is the majority; 2 is what the reference code does (stored value of 100 or more).

Patients: no name tells whose eye it is, so each image is a patient of its own. G1020 has 1020 images of 432 people
(its article): its own train/validation split may have a person on both sides. Give G1020's names to `pairs` with a
patient rule if you have its list.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from fedfms.data.manifest import LabelClass
from preprocessing.annotations import check_size, read_marked, read_values
from preprocessing.fundus_files import find_cases, site_names
from preprocessing.images import Fault, read_image
from preprocessing.recipe import Decoded, Found, Pixels, RawCase, Recipe

NAME = "fundus"
HELP = "optic disc and cup: REFUGE, ORIGA, G1020, Drishti-GS1, RIM-ONE"
SITES = ("REFUGE", "ORIGA", "G1020", "Drishti-GS1", "RIM-ONE")
RIM, CUP = 1, 2
_EXPERTS = 4  # that marked each image of Drishti-GS1
_KINDS = ({0: 0, 1: RIM, 2: CUP}, {255: 0, 128: RIM, 0: CUP})  # stored value: label value
_SOFT = "softmap"
_STEREO = "stereo images"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options."""
    parser.add_argument("--structures", choices=("disc-cup", "disc"), default="disc-cup", help="default disc-cup")
    parser.add_argument(
        "--experts", type=int, choices=range(1, _EXPERTS + 1), default=3,
        help="of Drishti-GS1's four, how many must agree (default 3; the reference code: 2)",
    )  # fmt: skip


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    whole = arguments.structures == "disc"
    structures = (LabelClass("disc", 1),) if whole else (LabelClass("rim", RIM), LabelClass("cup", CUP))
    return Recipe(
        dataset=f"{NAME}-disc" if whole else NAME,
        structures=structures,
        sites=site_names,
        find=Find(need_cup=not whole),
        read=Read(whole=whole, experts=arguments.experts),
        options={"structures": arguments.structures, "experts": str(arguments.experts)},
    )


@dataclass(frozen=True)
class Find:
    """Cases of a site; see `fundus_files.find_cases`."""

    need_cup: bool

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`."""
        return find_cases(raw, site, self.need_cup)


@dataclass(frozen=True)
class Read:
    """One photograph and its label values.

    Args:
        whole: rim and cup are one structure, the disc.
        experts: of four, how many must have marked a pixel of a soft map.
    """

    whole: bool
    experts: int

    def __call__(self, case: RawCase) -> Decoded:
        """As `Recipe.read`.

        Raises:
            Fault: a file is damaged, sizes differ, or the masks cannot be disc and cup.
        """
        files = case.files
        image = read_image(files["image"])
        if files["image"].parent.name.lower() == _STEREO:
            image = image[:, : image.shape[1] // 2]
        if "label" in files:
            label = _mapped(_stored(files["label"]))
        else:
            label = self._marked(files["disc"], image).astype(np.uint8)
            if "cup" in files:
                label[self._marked(files["cup"], image)] = CUP
        check_size(image, label)
        if not label.any():
            raise Fault("the mask shows no disc, and every photograph here has one")
        return Decoded(((image, np.minimum(label, 1) if self.whole else label),))

    def _marked(self, path: Path, image: Pixels) -> NDArray[np.bool_]:
        """Where a mask of one structure marks it, (H, W) of the image."""
        if _SOFT not in path.stem.lower():
            marked = read_marked(path)
            if marked.shape[1] // 2 == image.shape[1] and marked.shape[0] == image.shape[0]:
                marked = marked[:, : image.shape[1]]  # drawn on both views of a stereo image
        else:
            # stored: 255 times the share of experts; half a step below, for rounding differs by release
            marked = read_values(path) >= (self.experts - 0.5) / _EXPERTS * 255
        check_size(image, marked)
        if _border(marked):
            raise Fault("most of the mask's border is marked, so it is inverted or no mask of disc or cup")
        return marked


def _stored(path: Path) -> NDArray[np.generic]:
    """Stored values (H, W) of a mask of both structures."""
    if path.suffix.lower() != ".mat":
        return read_values(path)
    try:
        values = np.asarray(loadmat(path, variable_names=["mask"])["mask"])
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside the reader
        raise Fault("the mask cannot be read: damaged, or no MATLAB file with a variable `mask`") from error
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise Fault("the mask's variable `mask` is no matrix of numbers")
    return values


def _mapped(stored: NDArray[np.generic]) -> Pixels:
    """Label values (H, W) of stored ones, of whichever of the two kinds they are; the border tells if neither."""
    present = set(np.unique(stored).tolist())
    for table in _KINDS:
        if present <= table.keys():
            label = np.zeros(stored.shape, dtype=np.uint8)
            for source, value in table.items():
                label[stored == source] = value
            # an all-black mask is of both kinds: by the first it shows no disc, which is told in its place
            if _border(label > 0):
                raise Fault("most of the mask's border is disc or cup, so its values are not 0/1/2 or 255/128/0")
            return label
    odd = sorted(present - {value for table in _KINDS for value in table})[:8]
    raise Fault(f"the mask has values {odd or sorted(present)}; known are 0/1/2 and 255/128/0")


def _border(marked: NDArray[np.bool_]) -> bool:
    """Whether more than half of the outermost pixels (of H, W) are marked: a disc may touch it, not fill it."""
    edge = np.concatenate((marked[0], marked[-1], marked[:, 0], marked[:, -1]))
    return bool(edge.mean() > 0.5)
