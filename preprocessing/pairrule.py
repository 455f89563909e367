"""The keys of a rule file of `pairs`: each is checked and made what the recipe needs, or is a `DataError`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedfms.data.intensity import Mask, Window, eight_bits
from fedfms.data.manifest import LabelClass
from fedfms.data.niftifile import Array
from fedfms.data.volume import DEPTHS
from fedfms.errors import DataError
from preprocessing.images import LabelRule
from preprocessing.pairfiles import own_patient
from preprocessing.recipe import Pixels
from preprocessing.volumes import ValueRule

IMAGES, VOLUMES, DICOM = KINDS = ("images", "volumes", "dicom")
FROM_HEADER = "dicom"  # the `patient` of which the files themselves say whose they are
_ALL = ("kind", "structures", "values", "mask_suffixes", "patient")
_OF_VOLUMES = ("intensity", "window", "depth", "neighbours", "empty_every")
_KEYS = {IMAGES: (*_ALL, "threshold", "palette_index"), VOLUMES: (*_ALL, *_OF_VOLUMES), DICOM: (*_ALL, *_OF_VOLUMES)}
_SUFFIXES = {IMAGES: ("", "_mask")} | dict.fromkeys((VOLUMES, DICOM), ("", "_mask", "_seg", "_segmentation"))
_PERCENTILE, _WINDOW = INTENSITIES = ("percentile", "window")


@dataclass(frozen=True)
class PatientPattern:
    """A patient rule: what a regular expression's group 1 finds in the image's stem."""

    pattern: str

    def __call__(self, site: str, stem: str) -> str | None:
        """The patient of an image; None if the expression finds none."""
        found = re.search(self.pattern, stem)
        return (found.group(1) or None) if found else None


def load_rule(path: Path | None) -> tuple[str, dict[str, Any]]:
    """The kind of a rule file, and its keys as they stand; those of no file are none.

    Raises:
        DataError: the file cannot be read, or has a key that its kind has not.
    """
    raw: Any = {}
    if path is not None:
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise wrong("the file cannot be read as YAML") from error
    if not isinstance(raw, dict):
        raise wrong("it is no mapping")
    kind = raw.get("kind", IMAGES)
    if kind not in KINDS:
        raise wrong(f"kind must be one of {list(KINDS)}")
    odd = sorted(map(str, set(raw) - set(_KEYS[kind])))
    if odd:
        raise wrong(f"unknown keys {odd} for kind {kind}", kind)
    return kind, raw


def wrong(what: str, kind: str = IMAGES) -> DataError:
    """What is wrong with a rule file, as an error to raise."""
    known = f"known keys: {list(_KEYS[kind])}; see `python -m preprocessing pairs --help`"
    return DataError(what, where="rule file", do=known)


def _byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def structures_of(raw: dict[str, Any]) -> tuple[LabelClass, ...]:
    """The structures that a rule names; by default one.

    Raises:
        DataError: not names and different values in 1..255.
    """
    named = raw.get("structures", {"structure": 1})
    good = isinstance(named, dict) and named and all(_byte(value) and value > 0 for value in named.values())
    if not good or len(set(named.values())) != len(named):
        raise wrong("structures must map names to different values in 1..255")
    return tuple(LabelClass(str(name), value) for name, value in named.items())


def image_labels(raw: dict[str, Any], known: set[int]) -> LabelRule:
    """How stored values of a flat mask become label values, of which `known` are the structures'.

    Raises:
        DataError: values that are none, that no structure has, or that contradict each other.
    """
    palette_index = raw.get("palette_index", False)
    if not isinstance(palette_index, bool):
        raise wrong("palette_index must be true or false")  # "no" in quotes is a text, and would count as true
    if "values" not in raw:
        if "palette_index" in raw:
            raise wrong("palette_index needs values")
        threshold = raw.get("threshold", 127)
        if not _byte(threshold):
            raise wrong("threshold must be in 0..255")
        if known != {1}:
            raise wrong("a threshold makes label value 1 alone; for other structures write values")
        return LabelRule(threshold=threshold)
    if "threshold" in raw:
        raise wrong("write either values or threshold")
    return LabelRule(threshold=None, values=_values(raw["values"], known), palette_index=palette_index)


def volume_labels(raw: dict[str, Any], known: set[int]) -> ValueRule:
    """The same of a segmentation's values or segment numbers; without `values`, all above 0 are label value 1.

    Raises:
        DataError: as `image_labels`.
    """
    if "values" in raw:
        values = _values(raw["values"], known)
        if values.get(0):
            raise wrong("in a volume, 0 is background and leads to no other label value", VOLUMES)
        return ValueRule(values, required=False)
    if known != {1}:
        raise wrong("without values, all that is above 0 is label value 1; for other structures write values", VOLUMES)
    return ValueRule({}, above_zero=1, required=False)


def _values(raw: Any, known: set[int]) -> dict[int, int]:
    if not isinstance(raw, dict) or not all(_byte(key) and _byte(value) for key, value in raw.items()):
        raise wrong("values must map numbers in 0..255 to numbers in 0..255")
    if not set(raw.values()) <= known | {0}:
        raise wrong("values lead to a label value that structures do not name")
    return dict(raw)


def suffixes_of(kind: str, raw: dict[str, Any]) -> tuple[str, ...]:
    """What a mask's name has that its image's has not.

    Raises:
        DataError: no list of texts.
    """
    suffixes = raw.get("mask_suffixes", list(_SUFFIXES[kind]))
    if not isinstance(suffixes, list) or not suffixes or not all(isinstance(suffix, str) for suffix in suffixes):
        raise wrong("mask_suffixes must be a list of texts", kind)
    return tuple(suffixes)


def patient_of(kind: str, raw: dict[str, Any]) -> Callable[[str, str], str | None]:
    """Whose an image is by its name, if the rule says so, else its own.

    Raises:
        DataError: no regular expression with a group.
    """
    pattern = raw.get("patient")
    if pattern is None or (kind == DICOM and pattern == FROM_HEADER):
        return own_patient
    try:
        groups = re.compile(pattern).groups
    except (TypeError, re.error) as error:
        raise wrong("patient is no regular expression", kind) from error
    if groups < 1:
        raise wrong("patient needs a group, as in ^([^_]+)_", kind)
    return PatientPattern(pattern)


def intensity_of(kind: str, raw: dict[str, Any]) -> tuple[str, Callable[[Array, Mask | None], Pixels]]:
    """The name of the rule by which a volume's intensities become 8 bits, and the rule.

    Raises:
        DataError: no such rule, or no centre and width of a window.
    """
    name = raw.get("intensity", _WINDOW if "window" in raw else _PERCENTILE)
    if name not in INTENSITIES or (name == _WINDOW) != ("window" in raw):
        raise wrong("intensity must be percentile, or window with window: [centre, width]", kind)
    if name == _PERCENTILE:
        return name, eight_bits
    window = raw["window"]
    if not isinstance(window, list) or len(window) != 2 or not all(map(_number, window)) or window[1] <= 0:
        raise wrong("window must be [centre, width], of a width above 0", kind)
    return f"window {window[0]:g} {window[1]:g}", Window(float(window[0]), float(window[1]))


def cutting_of(kind: str, raw: dict[str, Any]) -> tuple[str, bool, int]:
    """Depth, whether an image has its neighbours as channels, and of how many empty slices one is kept.

    Raises:
        DataError: values that are none of these.
    """
    # a series is cut as it was acquired: of a thin-sliced one, the coarsest spacing lies within the slices
    depth = raw.get("depth", DEPTHS[1] if kind == DICOM else DEPTHS[0])
    neighbours, every = raw.get("neighbours", False), raw.get("empty_every", 1)
    if depth not in DEPTHS or not isinstance(neighbours, bool):
        raise wrong(f"depth must be one of {list(DEPTHS)}, neighbours true or false", kind)
    if not isinstance(every, int) or isinstance(every, bool) or not 1 <= every <= 1000:
        raise wrong("empty_every must be a number in 1..1000", kind)
    return depth, neighbours, every


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
