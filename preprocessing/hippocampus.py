"""Hippocampus in T1-weighted MRI (Medical Segmentation Decathlon, task 4): one hospital in three strata of
intensity scale, NOT three hospitals.

Never call a result on these "sites" multi-hospital. All volumes are from Vanderbilt University Medical Center and were
sorted by the stored intensities. The heterogeneity is real, the hospitals are not:
  msd_uint8          uint8, 99th percentile below 300
  msd_float_lt1200   float32, 99th percentile below 1200
  msd_float_ge1200   float32, 99th percentile 1200 or more, up to far over 10,000
Any other folder with volumes is a site too.

Layout: RAW/<site>/images/hippocampus_019.nii.gz and RAW/<site>/labels/hippocampus_019.nii.gz (or .nii). The volumes are
crops around one hippocampus, about 35 x 50 x 35 voxels of 1 mm. The archive of the decathlon has all of them in
imagesTr/ and labelsTr/ of one folder; sort them into sites first.

Structures: anterior 1, posterior 2 (head; body with tail). The whole hippocampus is both: `values: [1, 2]` in a study.
Stored values other than 0, 1 and 2 are a fault. A volume without any marked voxel is a fault.

Intensity: clipped at the volume's 99th percentile, then scaled linearly from its minimum to 0..255. This removes most
of the difference between the strata.

Options:
  --depth coarsest | third   default coarsest. With 1 mm along every axis, both are the third axis, bottom to top.

Patients: file names do not identify patients, so each volume is a separate patient. The decathlon has 394 volumes of
195 people (from memory), so two volumes may show one person, in one stratum or in two. Nothing here can detect that.

Raw data: medicaldecathlon.com, Task04_Hippocampus.

Licence: this software grants no right to the data. CC BY-SA 4.0 (from memory, not verified). Check the terms before you
use or share anything.

Citations: Simpson et al., arXiv 1902.09063, 2019; Antonelli et al., Nat Commun 13:4128, 2022.
"""

import argparse

from fedfms.data.manifest import LabelClass
from fedfms.preprocessing.recipe import Recipe
from fedfms.preprocessing.volumes import ValueRule, add_depth_option, volume_recipe

NAME = "hippocampus"
HELP = "hippocampus in T1 MRI (MSD task 4): one hospital in three strata of intensity scale, NOT three hospitals"
SITES = ("msd_uint8", "msd_float_lt1200", "msd_float_ge1200")
STRUCTURES = (LabelClass("anterior", 1), LabelClass("posterior", 2))

add_options = add_depth_option


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    return volume_recipe(NAME, STRUCTURES, ValueRule({1: 1, 2: 2}), arguments)
