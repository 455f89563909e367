"""The rule file of `pairs`, typed and validated: one class for each kind of data."""

import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedfms.data.intensity import Window, eight_bits
from fedfms.errors import DataError
from fedfms.preprocessing.images import LabelRule
from fedfms.preprocessing.pairfiles import PairReader
from fedfms.preprocessing.volumes import ValueRule, VolumeReader
from fedfms.schema import STRICT, Float, did_you_mean, mapping, parse, read_yaml

_WHERE, _HELP = "rule file", "see `fedfms prepare pairs --help`"

Byte = Annotated[int, Field(ge=0, le=255)]
LabelValue = Annotated[int, Field(ge=1, le=255)]
Suffixes = Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Rule:
    """Keys of every kind."""

    structures: Mapping[str, LabelValue] = field(default_factory=lambda: {"structure": 1})
    """Label value to write, by name of the structure."""
    values: Mapping[Byte, Byte] | None = None
    """Label value by stored value; 0 is background."""
    mask_suffixes: Suffixes = ("", "_mask")
    """Endings of a mask's stem, after the stem of its image."""
    patient: str | None = None
    """Regular expression whose group 1 in an image's name is the patient; None: each image is a patient."""

    def __post_init__(self) -> None:
        known = set(self.structures.values())
        if not known or len(known) < len(self.structures):
            raise _wrong("structures need different label values, at least one", "for instance {rim: 1, cup: 2}")
        if self.values is None and known != {1}:
            raise _wrong("without values, label value 1 is the only one", "add values, for instance {0: 0, 1: 1, 2: 2}")
        if self.values is not None and not set(self.values.values()) <= known | {0}:
            raise _wrong("values lead to a label value that structures do not name", "add it to structures")
        if self.patient is not None and not self.from_header:
            try:
                groups = re.compile(self.patient).groups
            except re.error as error:
                raise _wrong(f"patient is not a regular expression ({error.msg})", _HELP) from None
            if not groups:
                raise _wrong("patient has no group", "put the patient's part in parentheses, for instance ^([^_]+)_")

    @property
    def from_header(self) -> bool:
        """Whether the patient is DICOM's PatientID."""
        return False

    def patient_of(self, site: str, stem: str) -> str | None:
        """The patient of an image by its name; None if the pattern does not match or its group is empty."""
        if self.patient is None or self.from_header:
            return stem
        found = re.search(self.patient, stem)
        return (found.group(1) or None) if found else None


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ImageRule(Rule):
    """Flat images."""

    kind: Literal["images"] = "images"
    threshold: Byte | None = None
    """Stored luminance above it is label value 1; the default without `values` is 127."""
    palette_index: bool | None = None
    """`values` are indices of a palette instead of luminance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values is not None and self.threshold is not None:
            raise _wrong("values and threshold exclude each other", "remove one of them")
        if self.values is None and self.palette_index is not None:
            raise _wrong("palette_index needs values", "add values, for instance {0: 0, 1: 1}")

    def reader(self) -> PairReader:
        """The reader of pairs under this rule."""
        if self.values is not None:
            return PairReader(LabelRule(None, self.values, bool(self.palette_index)))
        return PairReader(LabelRule() if self.threshold is None else LabelRule(self.threshold))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class VolumeRule(Rule):
    """NIfTI volumes."""

    kind: Literal["volumes"] = "volumes"
    mask_suffixes: Suffixes = ("", "_mask", "_seg", "_segmentation")
    intensity: Literal["percentile", "window"] | None = None
    """The default is "window" with the key `window`, else "percentile"."""
    window: tuple[Float, Annotated[Float, Field(gt=0)]] | None = None
    """Centre and width."""
    depth: Literal["coarsest", "third"] = "coarsest"
    """The axis to cut across."""
    neighbours: bool = False
    """The slices before and after an image's are its first and last channel."""
    empty_every: Annotated[int, Field(ge=1, le=1000)] = 1
    """Of the slices without any structure, every Nth is stored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intensity is not None and (self.intensity == "window") != (self.window is not None):
            raise _wrong("intensity and window contradict each other", "write `window: [centre, width]` or neither")
        if self.values is not None and self.values.get(0):
            raise _wrong("in a volume, the stored value 0 is background", "write 0: 0, or leave 0 out")

    def reader(self) -> VolumeReader:
        """The reader of volumes under this rule; without `values`, all stored values above 0 are label value 1."""
        labels = ValueRule(self.values or {}, above_zero=1 if self.values is None else None, required=False)
        intensity = eight_bits if self.window is None else Window(*self.window)
        return VolumeReader(labels, self.depth, self.neighbours, self.empty_every, intensity)

    def options(self) -> dict[str, str]:
        """The choices on which the pixels depend, for the manifest."""
        return {
            "kind": self.kind,
            "intensity": "percentile" if self.window is None else "window {:g} {:g}".format(*self.window),
            "depth": self.depth,
            "neighbours": str(self.neighbours).lower(),
            "empty-every": str(self.empty_every),
        }


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DicomRule(VolumeRule):
    """DICOM series."""

    kind: Literal["dicom"] = "dicom"  # type: ignore[assignment]
    depth: Literal["coarsest", "third"] = "third"
    """The slices as acquired, also of a series with thin slices."""

    @property
    def from_header(self) -> bool:
        """Whether the patient is PatientID."""
        return self.patient == "dicom"


KINDS: Mapping[str, type[ImageRule | VolumeRule]] = {"images": ImageRule, "volumes": VolumeRule, "dicom": DicomRule}


def load_rule(path: Path | None) -> ImageRule | VolumeRule:
    """The rule in a file; without a file, the default rule of flat images.

    Raises:
        DataError: the file cannot be read, or it has a key or value that its kind does not accept.
    """
    raw = read_yaml(path, DataError, what="the file", where=_WHERE, do=_HELP) if path else {}
    rule = mapping(raw or {}, DataError, what="the file", where=_WHERE, do=_HELP)
    kind = rule.get("kind", "images")
    if not isinstance(kind, str) or kind not in KINDS:
        raise _wrong(f"kind is {kind!r}", did_you_mean(str(kind), KINDS))
    return parse(KINDS[kind], rule, DataError, where=_WHERE, do=_HELP)


def _wrong(what: str, do: str) -> DataError:
    return DataError(what, where=_WHERE, do=do)
