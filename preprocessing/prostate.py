"""Prostate in T2-weighted MRI: the public multi-site collection (Liu et al.), six sites of three challenges.

Sites: one folder each directly in RAW, with the name that the study uses. The collection has
  BIDMC     Beth Israel Deaconess Medical Center, Boston (PROMISE12)
  HK        Haukeland University Hospital, Bergen (PROMISE12)
  I2CVB     the collection of the I2CVB initiative, Dijon and Girona
  ISBI      Radboud UMC, Nijmegen, 3 T (NCI-ISBI 2013); RUNMC in some copies
  ISBI_1.5  Boston Medical Center, 1.5 T (NCI-ISBI 2013); BMC in some copies
  UCL       University College London (PROMISE12)
Any other folder with volumes is a site too.

Layout, .nii or .nii.gz, one or both in the folder of a site:
  Case00.nii.gz next to Case00_segmentation.nii.gz (at some sites Case00_Segmentation.nii.gz), as published;
  images/Case00.nii.gz and labels/Case00.nii.gz, as the code of FedFMS reads them.
The collection was not available here: sites and layout are from memory and from public code.

Structure: prostate, 1. All stored values above 0 are merged, because ISBI and ISBI_1.5 store the two zones as 1 and 2,
and the other sites store the whole gland as 1. More than eight different values above 0 are a fault: the segmentation
is an image. A volume without any marked voxel is a fault.

Intensity: clipped at the volume's 99th percentile, then scaled linearly from its minimum to 0..255. The published code
of FedFMS uses the stored numbers as bytes, of volumes that were scaled to 0..255 before.

Options:
  --depth coarsest | third   default coarsest: slices across the axis with the coarsest spacing, as acquired. third:
      across the array's third axis, as in the code of FedFMS. Both are the same for axial scans as published.
Empty slices are included, as in the code of FedFMS. Each slice keeps its size and the orientation of the stored array,
which may differ between sites.

Patients: file names do not identify patients, so each volume is a separate patient.

Raw data: liuquande.github.io/SAML. The sources are promise12.grand-challenge.org, i2cvb.github.io and NCI-ISBI 2013 at
The Cancer Imaging Archive.

Licence: this software grants no right to the data, and none of the terms was verified. The collection states no licence
known to us. PROMISE12: challenge data. I2CVB, NCI-ISBI 2013: Creative Commons with attribution (all from memory). Check
the terms before you use or share anything.

Citations: Liu, Dou, Heng, MICCAI 2020 (SAML); Liu et al., TMI 39, 2020 (MS-Net); Litjens et al., MedIA 18, 2014
(PROMISE12); Lemaitre et al., Comput Biol Med 60, 2015 (I2CVB); Bloch et al., NCI-ISBI 2013, TCIA 2015.
"""

import argparse

from fedfms.data.manifest import LabelClass
from fedfms.preprocessing.recipe import Recipe
from fedfms.preprocessing.volumes import ValueRule, add_depth_option, volume_recipe

NAME = "prostate"
HELP = "prostate in T2 MRI: BIDMC, HK, I2CVB, ISBI, ISBI_1.5, UCL"
SITES = ("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")

add_options = add_depth_option


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    return volume_recipe(NAME, (LabelClass("prostate", 1),), ValueRule({}, above_zero=1), arguments)
