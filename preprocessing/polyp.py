"""Polyps in colonoscopy frames: ten sites of hospitals in six countries.

Sites, by the names that a study uses, and the folders that their publishers chose. Unpack a download anywhere in
RAW, under the names below (capitals, blanks, `-` and `_` do not matter), and its sites are found:
  cvc_clinicdb_barcelona_es    Hospital Clinic, Barcelona (CVC-ClinicDB): CVC-ClinicDB/Original, .../Ground Truth,
                               TIFF; or CVC-ClinicDB/PNG/Original, .../PNG/Ground Truth. Beside TIF/, PNG/ is left
  cvc_colondb_barcelona_es     Barcelona (CVC-ColonDB, 380 frames): CVC-ColonDB/images, .../masks
  etis_lariboisiere_fr         Lariboisiere, Paris (ETIS-Larib, 196 frames): ETIS-LaribPolypDB/1.tif and, beside
                               that folder, Ground Truth/p1.tif; or ETIS-LaribPolypDB/images, .../masks
  kvasir_seg_vestreviken_no    Vestre Viken, Norway (Kvasir-SEG): Kvasir-SEG/images, Kvasir-SEG/masks
  polypgen_c1_paris_fr         Ambroise Pare, Paris (PolypGen centre 1): PolypGen2021_MultiCenterData_v3/data_C1/
                               images_C1/a.jpg, .../masks_C1/a_mask.jpg; the same for the others
  polypgen_c2_padova_it        Padova (centre 2)
  polypgen_c3_aviano_it        CRO Aviano (centre 3)
  polypgen_c4_oslo_no          Oslo University Hospital (centre 4)
  polypgen_c5_oxford_uk        John Radcliffe, Oxford (centre 5)
  polypgen_c6_alexandria_eg    Alexandria (centre 6)
Any other layout: RAW/<site>/images/a.jpg and RAW/<site>/labels/a_mask.jpg (or labels/a.jpg), any of PNG, JPEG,
TIFF, BMP. The patient rule goes by the name of the site's folder, so name it as here; other folders are sites too,
each of their frames a patient of its own. A site that lies in RAW twice is refused.

Of the test pack TestDataset/<set>/images and masks, ColonDB and ETIS are taken, which it holds whole; its Kvasir,
CVC-ClinicDB and CVC-300 are parts of other sites here, and are left alone. So are PolypGen's sequenceData and
imagesAll_positive, and the 300 frames of ColonDB's first release (BMP).

The publishers' folders are as public code reads them, and were tried on imitations only; images of Kvasir-SEG,
ClinicDB and PolypGen's centres but the fourth were seen, as RAW/<site>. Which centre 4 is, too, is from public code.

Structures: polyp (1). Masks have JPEG noise, so above a luminance of 127 is polyp; RGB and palette masks become
luminance first. Frames without polyp have an empty mask and stay.

Patients: Paris names an examination before the first `_`; ClinicDB has 29 video sequences, each taken for a
patient. ColonDB (15 sequences) and ETIS (34) are numbered, but no public source was found that says where a
sequence ends: runs of 38 and of 14 neighbouring frames are taken for a patient, which keeps most frames of a polyp
on one side of a split, and not those of a sequence that two runs cut; that the numbers follow the sequences is from
memory. To be strict, hold such a site out whole.
The other sites tell nothing of patients, so each frame is one.

Raw data: PolypGen at synapse.org, syn26376615; Kvasir-SEG at datasets.simula.no/kvasir-seg; CVC-ClinicDB at
polyp.grand-challenge.org/CVCClinicDB; ETIS-Larib at polyp.grand-challenge.org/EtisLarib; CVC-ColonDB in the test
pack of PraNet, github.com/DengPingFan/PraNet.

Licence: nothing here grants any right to the data. PolypGen: Synapse syn26376615, article CC BY 4.0;
Kvasir-SEG: research and education; CVC-ClinicDB: images property of Hospital Clinic Barcelona, research use;
ETIS-Larib: images property of Lariboisiere hospital and ETIS, CVC-ColonDB: of CVC Barcelona; neither's terms were
read here. Check before you use or pass on anything.

Citations: Ali et al., Sci Data 10:75, 2023 (PolypGen); Jha et al., MMM 2020 (Kvasir-SEG); Bernal et al., CMIG
43, 2015 (CVC-ClinicDB); Bernal et al., Pattern Recognition 45, 2012 (CVC-ColonDB); Silva et al., IJCARS 9, 2014
(ETIS-Larib).
"""

from __future__ import annotations

import argparse
import bisect

from fedfms.data.manifest import LabelClass
from preprocessing.pairfiles import PairReader
from preprocessing.polyp_layouts import LayoutFinder, site_names
from preprocessing.recipe import Recipe

NAME = "polyp"
HELP = "polyps in colonoscopy frames: PolypGen, Kvasir-SEG, CVC-ClinicDB, CVC-ColonDB, ETIS-Larib"

# Last frame of each of the 29 video sequences of CVC-ClinicDB (polyp.grand-challenge.org/CVCClinicDB).
# Neighbouring frames show the same polyp, so a sequence is taken for a patient.
CLINICDB_LAST_FRAMES = (
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428,
    447, 466, 478, 503, 528, 546, 571, 591, 612,
)  # fmt: skip


# Frames, and how many neighbours are taken for one patient, of sets whose sequences' ends are not published.
RUNS = {"cvc_colondb": (380, 38), "etis": (196, 14)}


def patient(site: str, stem: str) -> str | None:
    """Who is on a frame: Paris names an examination before the first `_`, ClinicDB has sequences, ColonDB and ETIS
    runs of neighbours, others a frame each.

    PolypGen's other centres and Kvasir-SEG tell nothing of patients in their names. A name in ClinicDB, ColonDB or
    ETIS that is no frame number is of an unknown sequence: None.
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
    """The number of a frame; None for a name that is none in 1..`frames`."""
    return int(stem) if stem.isdecimal() and 1 <= int(stem) <= frames else None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Nothing is to be chosen."""


def recipe(arguments: argparse.Namespace) -> Recipe:
    """Pairs of a frame and its mask."""
    return Recipe(
        dataset=NAME,
        structures=(LabelClass("polyp", 1),),
        sites=site_names,
        find=LayoutFinder(patient),
        read=PairReader(),
    )
