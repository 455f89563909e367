"""Polyps in colonoscopy frames: seven sites of hospitals in six countries.

Layout: RAW/<site>/images/a.jpg and RAW/<site>/labels/a_mask.jpg (or labels/a.jpg), any of PNG, JPEG, TIFF, BMP.
The patient rule goes by the name of the site's folder, so name it as here; other folders are sites too, each of
their frames a patient of its own:
  cvc_clinicdb_barcelona_es    Hospital Clinic, Barcelona (CVC-ClinicDB; the authors' TIFFs or their PNG copies)
  kvasir_seg_vestreviken_no    Vestre Viken, Norway (Kvasir-SEG)
  polypgen_c1_paris_fr         Ambroise Pare, Paris (PolypGen centre 1)
  polypgen_c2_padova_it        Padova (centre 2)
  polypgen_c3_aviano_it        CRO Aviano (centre 3)
  polypgen_c5_oxford_uk        John Radcliffe, Oxford (centre 5)
  polypgen_c6_alexandria_eg    Alexandria (centre 6)

Structures: polyp (1). Masks have JPEG noise, so above a luminance of 127 is polyp; RGB and palette masks become
luminance first. Frames without polyp have an empty mask and stay.

Patients: Paris names an examination before the first `_`; ClinicDB has 29 video sequences, each taken for a
patient; the other sites tell nothing of patients, so each frame is one.

Raw data: PolypGen at synapse.org, syn26376615; Kvasir-SEG at datasets.simula.no/kvasir-seg; CVC-ClinicDB at
polyp.grand-challenge.org/CVCClinicDB.

Licence: nothing here grants any right to the data. PolypGen: Synapse syn26376615, article CC BY 4.0;
Kvasir-SEG: research and education; CVC-ClinicDB: images property of Hospital Clinic Barcelona, research use.
Check before you use or pass on anything.

Citations: Ali et al., Sci Data 10:75, 2023 (PolypGen); Jha et al., MMM 2020 (Kvasir-SEG); Bernal et al., CMIG
43, 2015 (CVC-ClinicDB).
"""

from __future__ import annotations

import argparse
import bisect

from fedfms.data.manifest import LabelClass
from preprocessing.pairfiles import PairFinder, PairReader, pair_sites
from preprocessing.recipe import Recipe

NAME = "polyp"
HELP = "polyps in colonoscopy frames: PolypGen, Kvasir-SEG, CVC-ClinicDB"

# Last frame of each of the 29 video sequences of CVC-ClinicDB (polyp.grand-challenge.org/CVCClinicDB).
# Neighbouring frames show the same polyp, so a sequence is taken for a patient.
CLINICDB_LAST_FRAMES = (
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428,
    447, 466, 478, 503, 528, 546, 571, 591, 612,
)  # fmt: skip


def patient(site: str, stem: str) -> str | None:
    """Who is on a frame: Paris names an examination before the first `_`, ClinicDB has sequences, others a
    frame each.

    PolypGen's other centres and Kvasir-SEG tell nothing of patients in their names. A ClinicDB name that is no
    frame number is of an unknown sequence: None.
    """
    if site.startswith("polypgen_c1"):
        return stem.partition("_")[0]
    if site.startswith("cvc_clinicdb"):
        if not stem.isdecimal() or not 1 <= int(stem) <= CLINICDB_LAST_FRAMES[-1]:
            return None
        return f"sequence {bisect.bisect_left(CLINICDB_LAST_FRAMES, int(stem)) + 1}"
    return stem


def add_options(parser: argparse.ArgumentParser) -> None:
    """Nothing is to be chosen."""


def recipe(arguments: argparse.Namespace) -> Recipe:
    """Pairs of a frame and its mask."""
    return Recipe(
        dataset=NAME,
        structures=(LabelClass("polyp", 1),),
        sites=pair_sites,
        find=PairFinder(mask_suffixes=("", "_mask"), patient=patient),
        read=PairReader(),
    )
