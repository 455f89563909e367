"""Polyps in colonoscopy frames: seven hospitals of six countries; a folder `<site>/images`, `<site>/labels`
each.

Licence: nothing here grants any right to the data. PolypGen: Synapse syn26376615, article CC BY 4.0;
Kvasir-SEG: research and education; CVC-ClinicDB: images property of Hospital Clinic Barcelona, research use.
Check before you use or pass on anything.

Citations: Ali et al., Sci Data 10:75, 2023 (PolypGen); Jha et al., MMM 2020 (Kvasir-SEG); Bernal et al., CMIG
43, 2015 (CVC-ClinicDB).

Masks: JPEG noise, so a threshold at 127; RGB or palette masks are converted to luminance first. The mask of
`a.jpg` is `a_mask.jpg` or has the same name. Frames without polyp have an empty mask and stay.
"""

from __future__ import annotations

import bisect

from fedfms.data.manifest import LabelClass
from preprocessing.recipe import LabelRule, Recipe

SITES = (
    "cvc_clinicdb_barcelona_es",
    "kvasir_seg_vestreviken_no",
    "polypgen_c1_paris_fr",
    "polypgen_c2_padova_it",
    "polypgen_c3_aviano_it",
    "polypgen_c5_oxford_uk",
    "polypgen_c6_alexandria_eg",
)

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


RECIPE = Recipe(
    dataset="polyp",
    structures=(LabelClass("polyp", 1),),
    labels=LabelRule(threshold=127),
    mask_suffixes=("", "_mask"),
    patient=patient,
)
