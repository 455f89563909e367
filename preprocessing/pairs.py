"""A hospital's own data: a folder with `images/` and `labels/`, described by a small YAML rule file.

Every key of the rule file is optional. The key `kind` says what the folder holds; the default is flat images.

kind: images      PNG, JPEG, TIFF, BMP or .npy files (an array (H, W) or (H, W, C)). labels/a.png is the mask of
                  images/a.png.

  kind: images
  structures: {cup: 2, rim: 1}      # name: label value to write; default {structure: 1}
  values: {0: 0, 128: 1, 255: 2}    # stored value: label value; 0 is background
  palette_index: false              # true: values are indices of a palette, not luminance
  mask_suffixes: ["", "_mask"]      # the mask of a.png is a.png or a_mask.png
  patient: "^([^_]+)_"              # group 1 of this regular expression in the image's name is the patient; an image
                                    # without a match is a fault. Without a rule, each image is a separate patient

  For black and white masks, leave out `values`. The default is `threshold: 127`: a stored luminance above it becomes
  label value 1. A coloured mask is read as its luminance; pure red has 76.

kind: volumes     NIfTI files, .nii or .nii.gz, with a segmentation of the same size and affine for each volume.

  kind: volumes
  structures: {anterior: 1, posterior: 2}
  values: {1: 1, 2: 2}              # stored value: label value; 0 is background, other values that are not named are a
                                    # fault. Without this key, every value above 0 becomes label value 1
  mask_suffixes: ["", "_seg"]       # default "", "_mask", "_seg" and "_segmentation"
  patient: "^([^_]+)_"              # as above; without a rule, each volume is a separate patient
  intensity: percentile             # default: from the minimum to the 99th percentile of the volume
  depth: coarsest                   # default: slices across the axis with the coarsest spacing; third: across the
                                    # array's third axis
  neighbours: false                 # true: the slices before and after are the first and last channel of an image
  empty_every: 1                    # N: of the slices without any structure, every Nth is stored

kind: dicom       Each case is a folder images/<case>/ with the files of ONE series, at any depth and with any ending,
                  or a multi-frame file images/<case>.dcm. Its segmentation is labels/<case>.dcm, or a folder
                  labels/<case>/ with one file: a binary DICOM SEG. Or labels/<case>.nii.gz, on the grid of the series
                  (rows and slices may be flipped). Needs pydicom: pip install 'pydicom>=3,<4', or this package with
                  [dicom].

  kind: dicom
  structures: {liver: 1, tumour: 2}
  values: {1: 1, 2: 2}              # segment number (or stored value): label value
  mask_suffixes: ["", "_seg"]       # default as for volumes
  patient: dicom                    # PatientID; only its keyed hash is written. Or a regular expression on the case's
                                    # name; without a rule, each case is a separate patient
  intensity: window                 # default percentile, as for volumes
  window: [40, 400]                 # centre and width in rescaled units (CT: HU); also for volumes
  depth: third                      # default: the slices of the scanner. The other keys are as for volumes

Stored DICOM values are rescaled with slope and intercept. For MONOCHROME1, the 8 bits are inverted. An image's first
axis is the rows of the series, its second axis the columns; slices are ordered along the normal of their plane. The
manifest stores NIfTI's affine (right, front, top), so a label volume written from it lies where the series does.

Faults of a case: several series, sizes, orientations or spacings; missing slices; colours; a segmentation on another
grid; overlapping segments with different label values. A volume without any marked voxel is converted with empty
slices. DICOMDIR files are ignored. Compressed files need a decoder of pydicom: RLE, JPEG 2000 and baseline JPEG are
built in; `pip install python-gdcm` adds lossless JPEG and JPEG-LS.
"""

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from fedfms.data.manifest import LabelClass
from fedfms.data.niftifile import stem_of
from fedfms.errors import DataError
from fedfms.preprocessing.pairfiles import OneSite, PairFinder, image_stem, list_files
from fedfms.preprocessing.pairrule import DicomRule, ImageRule, load_rule
from fedfms.preprocessing.recipe import Recipe


def load_recipe(dataset: str, site: str, path: Path | None) -> Recipe:
    """The recipe of a site's own folder under a rule file; without a file, flat images with one structure.

    Raises:
        DataError: the rule file is wrong, or pydicom is needed and not installed.
    """
    rule = load_rule(path)
    structures = tuple(LabelClass(name, value) for name, value in rule.structures.items())
    recipe = partial(Recipe, dataset, structures, OneSite(site))
    find = partial(PairFinder, rule.mask_suffixes, rule.patient_of)
    if isinstance(rule, ImageRule):
        return recipe(find(partial(list_files, foreign=stem_of)), rule.reader())
    if not isinstance(rule, DicomRule):
        listing = partial(list_files, stem_of=stem_of, foreign=image_stem)
        return recipe(find(listing), rule.reader(), rule.options())
    dicom, reader = _import_dicom(), rule.reader()
    series = find(dicom.list_series)
    read = replace(reader, read=dicom.ReadDicom(reader.labels))
    return recipe(dicom.ByPatientId(series) if rule.from_header else series, read, rule.options())


def _import_dicom() -> ModuleType:
    """The module for DICOM, whose dependency pydicom is optional."""
    try:
        return importlib.import_module("fedfms.preprocessing.dicompairs")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "pydicom":
            raise
        do = "pip install 'pydicom>=3,<4', or this package with [dicom]"
        raise DataError("kind dicom needs pydicom, which is not installed", where="rule file", do=do) from error
