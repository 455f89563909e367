"""Prostate in T2-weighted MRI: the public multi-site collection (Liu et al.), six sites of three challenges.

Sites: a folder each directly in RAW, under the name that the study uses; the collection's own are
  BIDMC     Beth Israel Deaconess Medical Center, Boston (PROMISE12)
  HK        Haukeland University Hospital, Bergen (PROMISE12)
  I2CVB     the initiative's collection, Dijon and Girona
  ISBI      Radboud UMC, Nijmegen, 3 T (NCI-ISBI 2013); RUNMC in some copies
  ISBI_1.5  Boston Medical Center, 1.5 T (NCI-ISBI 2013); BMC in some copies
  UCL       University College London (PROMISE12)
Any other folder with volumes is a site too.

Layout, .nii or .nii.gz, either or both in a site's folder:
  Case00.nii.gz beside Case00_segmentation.nii.gz (at some sites Case00_Segmentation.nii.gz), as published;
  images/Case00.nii.gz and labels/Case00.nii.gz, as FedFMS's own code reads them.
The collection was not at hand: sites and layout are as remembered and as public code reads them.

Structure: prostate, 1. All stored values above 0 are merged into it, for ISBI and ISBI_1.5 have the two zones as
1 and 2 and other sites the whole gland as 1. More than eight different values above 0 are a fault, for then an
image lies where a segmentation should; so is a volume in which no prostate is marked.

Intensity: clipped at the volume's 99th percentile, then linear from its minimum to 0..255. FedFMS's published code
takes the stored numbers as bytes, of volumes that were brought to 0..255 before.

Options:
  --depth coarsest | third   default coarsest: slices across the axis of the coarsest spacing, along which the
      scanner made them; third: across the array's third axis, as FedFMS's code does. The same for axial scans as
      published.
Empty slices stay, as in FedFMS's code. Each slice keeps its size and the orientation of the stored array, which
may differ from site to site.

Patients: no name tells whose volume it is, so each is a patient of its own.

Raw data: liuquande.github.io/SAML; before it, promise12.grand-challenge.org, i2cvb.github.io and NCI-ISBI 2013 at
The Cancer Imaging Archive.

Licence: nothing here grants any right to the data, and none of these was read here. The collection states none
that is known to us; PROMISE12: challenge data; I2CVB, NCI-ISBI 2013: Creative Commons with attribution (all as
remembered). Check before you use or pass on anything.

Citations: Liu, Dou, Heng, MICCAI 2020 (SAML); Liu et al., TMI 39, 2020 (MS-Net); Litjens et al., MedIA 18, 2014
(PROMISE12); Lemaitre et al., Comput Biol Med 60, 2015 (I2CVB); Bloch et al., NCI-ISBI 2013, TCIA 2015.
"""

from __future__ import annotations

import argparse

from fedfms.data.manifest import LabelClass
from fedfms.data.volume import DEPTHS
from preprocessing.recipe import Recipe
from preprocessing.volumes import ValueRule, VolumeFinder, VolumeReader, volume_sites

NAME = "prostate"
HELP = "prostate in T2 MRI: BIDMC, HK, I2CVB, ISBI, ISBI_1.5, UCL"
SITES = ("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options."""
    parser.add_argument("--depth", choices=DEPTHS, default=DEPTHS[0], help=f"default {DEPTHS[0]}")


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    return Recipe(
        dataset=NAME,
        structures=(LabelClass("prostate", 1),),
        sites=volume_sites,
        find=VolumeFinder(),
        read=VolumeReader(ValueRule({}, above_zero=1), depth=arguments.depth),
        options={"depth": arguments.depth},
    )
