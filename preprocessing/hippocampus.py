"""Hippocampus in T1-weighted MRI (Medical Segmentation Decathlon, task 4): one hospital in three strata of
intensity scale, NOT three hospitals.

Never call a result on these "sites" multi-hospital: all volumes are of Vanderbilt University Medical Center, and
were sorted by how their intensities are stored. The heterogeneity is real, the hospitals are not:
  msd_uint8          uint8, 99th percentile below 300
  msd_float_lt1200   float32, 99th percentile below 1200
  msd_float_ge1200   float32, 99th percentile of 1200 and more, up to far over 10,000
Any other folder with volumes is a site too.

Layout: RAW/<site>/images/hippocampus_019.nii.gz and RAW/<site>/labels/hippocampus_019.nii.gz (.nii as well);
crops round one hippocampus, about 35 x 50 x 35 voxels of 1 mm. The decathlon's own archive has them in imagesTr/
and labelsTr/ of one folder: sort them first.

Structures: anterior 1, posterior 2 (head, and body with tail); the whole is both: `values: [1, 2]` in a study.
Stored values other than 0, 1 and 2 are a fault, and so is a volume in which nothing is marked.

Intensity: clipped at the volume's 99th percentile, then linear from its minimum to 0..255; this takes away most of
what sets the strata apart.

Options:
  --depth coarsest | third   default coarsest; with 1 mm along every axis, both are the third, bottom to top.

Patients: the names tell of none, so each volume is a patient of its own. The decathlon has 394 volumes of 195
people (as remembered), so two volumes may be of one person, in one stratum or in two; nothing here can tell.

Raw data: medicaldecathlon.com, Task04_Hippocampus.

Licence: nothing here grants any right to the data. CC BY-SA 4.0 (as remembered, not read here). Check before you
use or pass on anything.

Citations: Simpson et al., arXiv 1902.09063, 2019; Antonelli et al., Nat Commun 13:4128, 2022.
"""

from __future__ import annotations

import argparse

from fedfms.data.manifest import LabelClass
from fedfms.data.volume import DEPTHS
from preprocessing.recipe import Recipe
from preprocessing.volumes import ValueRule, VolumeFinder, VolumeReader, volume_sites

NAME = "hippocampus"
HELP = "hippocampus in T1 MRI (MSD task 4): one hospital in three strata of intensity scale, NOT three hospitals"
SITES = ("msd_uint8", "msd_float_lt1200", "msd_float_ge1200")
STRUCTURES = (LabelClass("anterior", 1), LabelClass("posterior", 2))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options."""
    parser.add_argument("--depth", choices=DEPTHS, default=DEPTHS[0], help=f"default {DEPTHS[0]}")


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    return Recipe(
        dataset=NAME,
        structures=STRUCTURES,
        sites=volume_sites,
        find=VolumeFinder(),
        read=VolumeReader(ValueRule({one.value: one.value for one in STRUCTURES}), depth=arguments.depth),
        options={"depth": arguments.depth},
    )
