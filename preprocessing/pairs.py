"""Any folder with `images/` and `labels/` of PNG, JPEG, TIFF, BMP or .npy files (an array (H, W) or (H, W, C)):
its rules in a small YAML, every key of it optional.

structures: {cup: 2, rim: 1}      # name: label value to write; default {structure: 1}
values: {0: 2, 128: 1, 255: 0}    # stored value: label value; without it, a threshold
threshold: 127                    # stored luminance above it: label value 1
palette_index: false              # true: values are indices of a palette, not luminance
mask_suffixes: ["", "_mask"]      # the mask of a.png is a.png or a_mask.png
patient: "^([^_]+)_"              # group 1 of this expression in the image's name, and an image without it
                                  # is a fault; without a rule, each image is a patient of its own
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedfms.data.manifest import LabelClass
from fedfms.errors import DataError
from preprocessing.images import LabelRule
from preprocessing.pairfiles import OneSite, PairFinder, PairReader, own_patient
from preprocessing.recipe import Recipe

_KEYS = ("structures", "values", "threshold", "palette_index", "mask_suffixes", "patient")


@dataclass(frozen=True)
class PatientPattern:
    """A patient rule: what a regular expression's group 1 finds in the image's stem."""

    pattern: str

    def __call__(self, site: str, stem: str) -> str | None:
        """The patient of an image; None if the expression finds none."""
        found = re.search(self.pattern, stem)
        return (found.group(1) or None) if found else None


def load_recipe(dataset: str, site: str, path: Path | None) -> Recipe:
    """The recipe of a site's own folder from a rule file, or the default one (one structure, threshold 127).

    Raises:
        DataError: the file cannot be read, or a key or value is not one of those above.
    """
    raw: Any = {}
    if path is not None:
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _wrong("the file cannot be read as YAML") from error
    if not isinstance(raw, dict) or set(raw) - set(_KEYS):
        odd = sorted(map(str, set(raw) - set(_KEYS))) if isinstance(raw, dict) else []
        raise _wrong(f"unknown keys {odd}" if odd else "it is no mapping")
    structures = _structures(raw.get("structures", {"structure": 1}))
    suffixes, patient = _suffixes(raw.get("mask_suffixes", ["", "_mask"])), _patient(raw.get("patient"))
    return Recipe(
        dataset=dataset,
        structures=structures,
        sites=OneSite(site),
        find=PairFinder(suffixes, patient, site_folders=False),
        read=PairReader(_labels(raw, {structure.value for structure in structures})),
    )


def _wrong(what: str) -> DataError:
    known = f"known keys: {list(_KEYS)}; see `python -m preprocessing pairs --help`"
    return DataError(what, where="rule file", do=known)


def _byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _structures(raw: Any) -> tuple[LabelClass, ...]:
    good = isinstance(raw, dict) and raw and all(_byte(value) and value > 0 for value in raw.values())
    if not good or len(set(raw.values())) != len(raw):
        raise _wrong("structures must map names to different values in 1..255")
    return tuple(LabelClass(str(name), value) for name, value in raw.items())


def _labels(raw: dict[str, Any], known: set[int]) -> LabelRule:
    palette_index = raw.get("palette_index", False)
    if not isinstance(palette_index, bool):
        raise _wrong("palette_index must be true or false")  # "no" in quotes is a text, and would count as true
    if "values" not in raw:
        if "palette_index" in raw:
            raise _wrong("palette_index needs values")
        threshold = raw.get("threshold", 127)
        if not _byte(threshold):
            raise _wrong("threshold must be in 0..255")
        if known != {1}:
            raise _wrong("a threshold makes label value 1 alone; for other structures write values")
        return LabelRule(threshold=threshold)
    values = raw["values"]
    if "threshold" in raw:
        raise _wrong("write either values or threshold")
    if not isinstance(values, dict) or not all(_byte(key) and _byte(value) for key, value in values.items()):
        raise _wrong("values must map numbers in 0..255 to numbers in 0..255")
    if not set(values.values()) <= known | {0}:
        raise _wrong("values lead to a label value that structures do not name")
    return LabelRule(threshold=None, values=dict(values), palette_index=palette_index)


def _suffixes(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not raw or not all(isinstance(suffix, str) for suffix in raw):
        raise _wrong("mask_suffixes must be a list of texts")
    return tuple(raw)


def _patient(raw: Any) -> Any:
    if raw is None:
        return own_patient
    try:
        groups = re.compile(raw).groups
    except (TypeError, re.error) as error:
        raise _wrong("patient is no regular expression") from error
    if groups < 1:
        raise _wrong("patient needs a group, as in ^([^_]+)_")
    return PatientPattern(raw)
