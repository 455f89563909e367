"""The data contract: what a site's folder `ROOT/<dataset>/<site>/` holds, and how its manifest is read and written.

    manifest.json           the dataclasses of this file; written last, so a folder without it is incomplete
    images/<case>_<k>.webp  slice k of a case: uint8, RGB, native resolution, lossless
    images/<case>_<k>.png   the same for grey slices, those too large for WebP, and older conversions
    labels/<case>_<k>.png   uint8 label values, same size

The manifest names the format of each image. Hashes are of decoded pixels, so splits do not depend on the format.

Ids of cases and patients are pseudonyms. No original name, path or header field enters the folder, except the shape
and affine of a volume (`Volume`), which place a prediction on the original.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from fedfms.data import splits
from fedfms.data.volume import Volume
from fedfms.errors import DataError
from fedfms.files import write_atomic
from fedfms.schema import STRICT, parse_bytes

VERSION = 2
FILE_NAME = "manifest.json"
FORMATS = ("PNG", "WEBP")  # in Pillow's terms; no other format is opened
CONVERT = "convert the site again with `fedfms prepare`"
_WEBP_INFO = frozenset({"loop", "background", "timestamp", "duration"})  # what Pillow reports of any WebP
_OUTSIDE = re.compile(r"\A\Z|\A/|(?:\A|/)\.\.(?:/|\Z)|[\\:\0]")  # empty, absolute, `..`, or a name on Windows

SidePx = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class LabelClass:
    """A label value above 0 and its meaning."""

    name: str
    value: Annotated[int, Field(ge=1, le=255)]


@dataclass(frozen=True, config=STRICT)
class Slice:
    """One image and its label map: files relative to the site's folder, and SHA-256 of decoded pixels."""

    image: str
    label: str
    width_px: SidePx
    height_px: SidePx
    channels: Literal[1, 3]
    image_sha256: str
    label_sha256: str
    values: tuple[int, ...]
    """Label values present, including 0."""


@dataclass(frozen=True, config=STRICT)
class Case:
    """Slices of one examination."""

    id: str
    patient: str
    """Groups the cases that must stay on one side of a split."""
    slices: tuple[Slice, ...]
    volume: Volume | None = None
    """Position of the slices in their volume; None for flat images."""

    def __post_init__(self) -> None:
        if not self.slices:
            raise self._fault("no slices")
        if any(_OUTSIDE.search(slice_.image) or _OUTSIDE.search(slice_.label) for slice_ in self.slices):
            raise self._fault("a file name leads out of the site's folder")
        sizes = [(slice_.height_px, slice_.width_px) for slice_ in self.slices]
        if self.volume and (fault := self.volume.fault(sizes)):
            raise self._fault(fault)

    def _fault(self, what: str) -> DataError:
        return DataError(what, where=f"case {self.id}", do=CONVERT)


@dataclass(frozen=True, config=STRICT)
class Split:
    """Case ids by part, for one protocol and seed, under one version of the rule (`fedfms.data.splits`)."""

    protocol: splits.Protocol
    seed: int
    rule: int
    parts: Mapping[str, tuple[str, ...]]


def _current(version: int) -> int:
    if version != VERSION:
        raise DataError(f"manifest version {version} is not {VERSION}", do=CONVERT)
    return version


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """A site's data set."""

    version: Annotated[int, AfterValidator(_current)]
    dataset: str
    site: str
    structures: tuple[LabelClass, ...]
    cases: tuple[Case, ...]
    splits: tuple[Split, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    """Choices of the conversion on which the pixels depend (`disc: rim`)."""

    def __post_init__(self) -> None:
        for what, names in (
            ("case id", [case.id for case in self.cases]),
            ("structure", [structure.name for structure in self.structures]),
            ("label value", [structure.value for structure in self.structures]),
            ("image file", [slice_.image for case in self.cases for slice_ in case.slices]),
        ):
            if len(set(names)) != len(names):
                raise DataError(f"a {what} occurs twice", where="manifest", do=CONVERT)
        values = self.values
        for case, number, slice_ in self.slices():
            if not values.issuperset(slice_.values):
                unknown = sorted(set(slice_.values) - values)
                what = f"slice {number} has label values {unknown} that no structure has"
                raise DataError(what, where=f"case {case.id}", do=CONVERT)

    @property
    def values(self) -> frozenset[int]:
        """Label values that may occur: the background, 0, and each structure's."""
        return frozenset({0, *(structure.value for structure in self.structures)})

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of cases, slices, slices without any structure ("empty"), and patients."""
        slices = [slice_ for _, _, slice_ in self.slices()]
        return {
            "cases": len(self.cases),
            "slices": len(slices),
            "empty": sum(not any(slice_.values) for slice_ in slices),
            "patients": len({case.patient for case in self.cases}),
        }

    def slices(self) -> Iterator[tuple[Case, int, Slice]]:
        """Every slice with its case and its number in the case."""
        for case in self.cases:
            for number, slice_ in enumerate(case.slices):
                yield case, number, slice_


def make_splits(cases: Sequence[Case], seed: int = 0) -> tuple[Split, ...]:
    """The split of each protocol, by case id, sorted."""
    hashes: dict[str, list[str]] = {}
    for case in cases:
        hashes.setdefault(case.patient, []).extend(slice_.image_sha256 for slice_ in case.slices)
    blank = {blank_sha256(s.width_px, s.height_px, s.channels) for case in cases for s in case.slices}
    made = []
    for protocol in splits.PROTOCOLS:
        parts = {}
        for part, patients in splits.assign(hashes, protocol, seed, blank).items():
            members = set(patients)
            parts[part] = tuple(sorted(case.id for case in cases if case.patient in members))
        made.append(Split(protocol, seed, splits.RULE_VERSION, parts))
    return tuple(made)


def pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of shape and values of decoded pixels (H, W) or (H, W, C), uint8."""
    digest = hashlib.sha256(("x".join(map(str, pixels.shape)) + ":").encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


@cache
def blank_sha256(width_px: int, height_px: int, channels: int) -> str:
    """SHA-256 (hex) of the pixels of a black image of that size, which identifies no patient (`splits`)."""
    shape = (height_px, width_px) if channels == 1 else (height_px, width_px, channels)
    return pixel_sha256(np.zeros(shape, np.uint8))


def metadata(opened: Image.Image) -> set[str]:
    """Names of what an image file holds in addition to pixels."""
    return {str(name) for name in opened.info} - (_WEBP_INFO if opened.format == "WEBP" else set())


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` into the site's folder, atomically."""
    write_atomic(folder / FILE_NAME, (json.dumps(asdict(manifest), indent=1) + "\n").encode())


def load_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest in a site's folder; `missing_files` checks the files that it lists.

    Raises:
        DataError: no manifest, not JSON, another version, an unknown key, an impossible value.
    """
    try:
        text = (folder / FILE_NAME).read_bytes()
    except FileNotFoundError as error:
        raise DataError("there is no manifest.json", do=CONVERT) from error
    except OSError as error:
        raise DataError(f"manifest.json cannot be read ({error.strerror})", do=CONVERT) from error
    return parse_manifest(text)


def parse_manifest(text: str | bytes) -> Manifest:
    """The manifest that JSON text describes.

    Raises:
        DataError: as `load_manifest`.
    """
    return parse_bytes(Manifest, text, DataError, do=CONVERT, key="manifest", machine_written=True)


def missing_files(manifest: Manifest, folder: Path) -> list[str]:
    """One line for each image or label file that is missing, with its case.

    Raises:
        DataError: a file lies outside the site's folder (a link).
    """
    lines, root = [], folder.resolve()
    for case, number, slice_ in manifest.slices():
        for kind, name in (("image", slice_.image), ("label", slice_.label)):
            path = (folder / name).resolve()
            if not path.is_relative_to(root):
                what = f"the {kind} of slice {number} is outside the folder"
                raise DataError(what, where=f"case {case.id}", do=CONVERT)
            if not path.is_file():
                lines.append(f"case {case.id}: the {kind} of slice {number} is missing")
    return lines
