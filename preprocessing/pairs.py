"""A hospital's own data: any folder with `images/` and `labels/`, under the rules in a small YAML, every key of it
optional. What lies there is of one of three kinds, which the key `kind` names; without it, flat images.

kind: images      PNG, JPEG, TIFF, BMP or .npy files (an array (H, W) or (H, W, C)); labels/a.png is images/a.png's.

  kind: images
  structures: {cup: 2, rim: 1}      # name: label value to write; default {structure: 1}
  values: {0: 0, 128: 1, 255: 2}    # stored value: label value, 0 = background; without it, a threshold
  palette_index: false              # true: values are indices of a palette, not luminance
  mask_suffixes: ["", "_mask"]      # the mask of a.png is a.png or a_mask.png
  patient: "^([^_]+)_"              # group 1 of this expression in the image's name, and an image without it
                                    # is a fault; without a rule, each image is a patient of its own

  For masks of black and white leave values out: `threshold: 127`, stored luminance above which is label value 1, is
  the default. A coloured mask is read as its luminance, of which pure red has 76.

kind: volumes     NIfTI, .nii or .nii.gz, a segmentation of the same size and affine for each volume.

  kind: volumes
  structures: {anterior: 1, posterior: 2}
  values: {1: 1, 2: 2}              # stored value: label value; 0 is background, a value that is not named a fault;
                                    # without it, all above 0 is label value 1
  mask_suffixes: ["", "_seg"]       # default "", "_mask", "_seg" and "_segmentation"
  patient: "^([^_]+)_"              # as above; without it, each volume is a patient of its own
  intensity: percentile             # the default: from the minimum to the 99th percentile of the volume
  depth: coarsest                   # slices across the axis of the coarsest spacing; third: the array's third axis
  neighbours: false                 # true: the slices before and after an image's are its first and last channel
  empty_every: 1                    # of slices with no structure, one in so many is kept

kind: dicom       Each case a folder images/<case>/ with the files of ONE series in it, at any depth, of any ending;
                  or a file images/<case>.dcm of many frames. In labels/, <case>.dcm or a folder <case>/ with one
                  file: a binary DICOM SEG; or <case>.nii.gz, on the series' grid (rows and slices may be flipped).
                  Needs pydicom: pip install 'pydicom>=3,<4', or this package with [dicom].

  kind: dicom
  structures: {liver: 1, tumour: 2}
  values: {1: 1, 2: 2}              # segment number (or stored value): label value
  mask_suffixes: ["", "_seg"]       # default as of volumes
  patient: dicom                    # PatientID, of which a keyed hash is written and nothing else; or an expression,
                                    # of the case's name; without it, each case is a patient of its own
  intensity: window                 # default percentile, as of volumes
  window: [40, 400]                 # centre and width, in rescaled units (CT: HU); for volumes too
  depth: third                      # the default: slices as the scanner made them; the other keys as of volumes

DICOM values are rescaled (slope, intercept); of MONOCHROME1, the 8 bits are inverted. An image's first axis is the
series' rows, its second the columns, and slices lie along the normal of their plane; the affine that the manifest
keeps is NIfTI's (right, front, top), so that a label volume written from it lies where the series does. Several
series, sizes, orientations or spacings in a case, missing slices, colours, a segmentation on another grid and
overlapping segments of different label values are faults of the case. Compressed files are read where pydicom has a
decoder: RLE, JPEG 2000 and JPEG baseline; lossless JPEG and JPEG-LS after `pip install python-gdcm`. DICOMDIR is
passed over. A volume in which nothing is marked is converted: all of its slices are empty.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from fedfms.data.niftifile import stem_of
from fedfms.errors import DataError
from preprocessing import pairrule
from preprocessing.pairfiles import OneSite, PairFinder, PairReader, image_stem, list_files
from preprocessing.pairrule import FROM_HEADER, IMAGES, VOLUMES
from preprocessing.recipe import Found, Recipe
from preprocessing.volumes import VolumeReader


def load_recipe(dataset: str, site: str, path: Path | None) -> Recipe:
    """The recipe of a site's own folder from a rule file, or the default one (flat images, one structure,
    threshold 127).

    Raises:
        DataError: the file cannot be read, a key or value is not one of those above, or pydicom is needed and
            not installed.
    """
    kind, raw = pairrule.load_rule(path)
    structures = pairrule.structures_of(raw)
    known = {structure.value for structure in structures}
    find = PairFinder(pairrule.suffixes_of(kind, raw), pairrule.patient_of(kind, raw), site_folders=False)
    if kind == IMAGES:
        images = replace(find, listing=partial(list_files, foreign=stem_of))
        return Recipe(dataset, structures, OneSite(site), images, PairReader(pairrule.image_labels(raw, known)))
    labels, (intensity, rule) = pairrule.volume_labels(raw, known), pairrule.intensity_of(kind, raw)
    depth, neighbours, empty_every = pairrule.cutting_of(kind, raw)
    reader = VolumeReader(labels, depth, neighbours, empty_every, rule)
    options = {"kind": kind, "intensity": intensity, "depth": depth, "neighbours": str(neighbours).lower(),
               "empty-every": str(empty_every)}  # fmt: skip
    if kind == VOLUMES:
        volumes = replace(find, listing=partial(list_files, stem_of=stem_of, foreign=image_stem))
        return Recipe(dataset, structures, OneSite(site), volumes, reader, options)
    dicom = _dicom()
    series: Callable[[Path, str], Found] = replace(find, listing=dicom.list_series)
    if raw.get("patient") == FROM_HEADER:
        series = dicom.ByPatientId(replace(find, listing=dicom.list_series))
    reader = replace(reader, read=dicom.ReadDicom(labels))
    return Recipe(dataset, structures, OneSite(site), series, reader, options)


def _dicom() -> ModuleType:
    """The code for DICOM, which needs a package that the rest does not."""
    try:
        return importlib.import_module("preprocessing.dicompairs")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "pydicom":
            raise
        do = "pip install 'pydicom>=3,<4', or this package with [dicom]"
        raise DataError("kind dicom needs pydicom, which is not installed", where="rule file", do=do) from error
