"""The data contract: what lies in `ROOT/<dataset>/<site>/`, and how it is read and written.

    manifest.json           this file's dataclasses, written last and at once: without it, a folder is not whole
    images/<case>_<k>.webp  slice k of a case: uint8, RGB, native resolution, lossless
    images/<case>_<k>.png   the same where it is grey, too large for WebP, or of an older conversion
    labels/<case>_<k>.png   uint8, the label values themselves, same size

Which of the two an image is, its name in the manifest says. Hashes are of decoded pixels, so a split does not
depend on it.

Ids of cases and patients are pseudonyms. No original name, path or header field enters the folder; of a
volume's header, only its shape and affine do (`Volume`), for a prediction is to lie on the original.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedfms.data import splits
from fedfms.data.plain import CONVERT, exact, of
from fedfms.data.volume import Volume, parse_volume
from fedfms.errors import DataError
from fedfms.files import write_atomic

VERSION = 2
FILE_NAME = "manifest.json"
FORMATS = ("PNG", "WEBP")  # as Pillow names them; nothing else is opened
_WEBP_OWN = frozenset({"loop", "background", "timestamp", "duration"})  # what Pillow tells of any WebP


@dataclass(frozen=True)
class LabelClass:
    """A label value above 0 and what it means."""

    name: str
    value: int


@dataclass(frozen=True)
class Slice:
    """One image and its label map: files relative to the site's folder, sizes in pixels, SHA-256 of decoded
    pixels.
    """

    image: str
    label: str
    width_px: int
    height_px: int
    channels: int
    image_sha256: str
    label_sha256: str
    values: tuple[int, ...]  # label values present, 0 included


@dataclass(frozen=True)
class Case:
    """Slices of one examination; `patient` groups the cases that must stay on one side of a split; `volume` says
    where its slices were cut from, None for flat images.
    """

    id: str
    patient: str
    slices: tuple[Slice, ...]
    volume: Volume | None = None


@dataclass(frozen=True)
class Split:
    """Case ids by part, for one protocol and seed, under one version of the rule (`fedfms.data.splits`)."""

    protocol: str
    seed: int
    rule: int
    parts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Manifest:
    """A site's data set; `options` are the conversion's choices (`disc: rim`) that its pixels depend on."""

    version: int
    dataset: str
    site: str
    structures: tuple[LabelClass, ...]
    cases: tuple[Case, ...]
    splits: tuple[Split, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> frozenset[int]:
        """Label values that may occur: the background, 0, and each structure's."""
        return frozenset({0, *(structure.value for structure in self.structures)})

    @property
    def patients(self) -> dict[str, list[str]]:
        """Image hashes by patient: what `splits` works on."""
        found: dict[str, list[str]] = {}
        for case in self.cases:
            found.setdefault(case.patient, []).extend(s.image_sha256 for s in case.slices)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of cases, slices, slices that show no structure ("empty"), and patients."""
        found = [slice_ for _, _, slice_ in self.slices()]
        return {
            "cases": len(self.cases),
            "slices": len(found),
            "empty": sum(not any(slice_.values) for slice_ in found),
            "patients": len(self.patients),
        }

    def slices(self) -> Iterator[tuple[Case, int, Slice]]:
        """Every slice with its case and its number in it."""
        for case in self.cases:
            for number, slice_ in enumerate(case.slices):
                yield case, number, slice_


def make_splits(cases: tuple[Case, ...], seed: int = 0) -> tuple[Split, ...]:
    """The split of each protocol, by case id, sorted."""
    patients = Manifest(VERSION, "", "", (), cases, ()).patients
    blank = {blank_sha256(s.width_px, s.height_px, s.channels) for case in cases for s in case.slices}
    made = []
    for protocol in splits.PROTOCOLS:
        parts = {
            part: tuple(sorted(case.id for case in cases if case.patient in set(members)))
            for part, members in splits.assign(patients, protocol, seed, blank).items()
        }
        made.append(Split(protocol, seed, splits.RULE_VERSION, parts))
    return tuple(made)


def pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of decoded pixels (H, W) or (H, W, C), uint8; the shape is hashed too."""
    digest = hashlib.sha256(("x".join(map(str, pixels.shape)) + ":").encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


@cache
def blank_sha256(width_px: int, height_px: int, channels: int) -> str:
    """SHA-256 (hex) of the pixels of a black image of that size: it is nobody's (`splits`)."""
    shape = (height_px, width_px) if channels == 1 else (height_px, width_px, channels)
    return pixel_sha256(np.zeros(shape, np.uint8))


def metadata(opened: Image.Image) -> set[str]:
    """Names of what an image file holds beside its pixels."""
    return {str(name) for name in opened.info} - (_WEBP_OWN if opened.format == "WEBP" else set())


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` into the site's folder, whole or not at all."""
    write_atomic(folder / FILE_NAME, (json.dumps(asdict(manifest), indent=1) + "\n").encode())


def load_manifest(folder: Path) -> Manifest:
    """Read and check the manifest in a site's folder (its files are looked at in `missing_files`).

    Raises:
        DataError: no manifest, not JSON, an unknown version or key, a value that cannot be.
    """
    path = folder / FILE_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("there is no manifest.json", do=CONVERT) from error
    except (OSError, ValueError) as error:
        raise DataError("manifest.json cannot be read as JSON", do=CONVERT) from error
    return parse_manifest(raw)


def parse_manifest(raw: Any) -> Manifest:
    """The manifest that plain JSON values describe; the inverse of `dataclasses.asdict`.

    Raises:
        DataError: as `load_manifest`.
    """
    if not isinstance(raw, dict):
        raise DataError("manifest.json must hold one object", do=CONVERT)
    if raw.get("version") != VERSION:
        raise DataError(f"manifest version {raw.get('version')!r} is not {VERSION}", do=CONVERT)
    exact(raw, Manifest, "manifest")
    manifest = Manifest(
        version=VERSION,
        dataset=of(raw["dataset"], str, "dataset"),
        site=of(raw["site"], str, "site"),
        structures=tuple(_structure(item) for item in of(raw["structures"], list, "structures")),
        cases=tuple(_case(item) for item in of(raw["cases"], list, "cases")),
        splits=tuple(_split(item) for item in of(raw["splits"], list, "splits")),
        options={name: of(value, str, "options") for name, value in of(raw["options"], dict, "options").items()},
    )
    _consistent(manifest)
    return manifest


def missing_files(manifest: Manifest, folder: Path) -> list[str]:
    """One line for each image or label file that is not there, naming its case.

    Raises:
        DataError: a file lies outside the site's folder (a link).
    """
    lines, root = [], folder.resolve()
    for case, number, slice_ in manifest.slices():
        for kind, name in (("image", slice_.image), ("label", slice_.label)):
            path = (folder / name).resolve()
            if not path.is_relative_to(root):
                raise DataError(
                    f"the {kind} of slice {number} is outside the folder",
                    where=f"case {case.id}",
                    do=CONVERT,
                )
            if not path.is_file():
                lines.append(f"case {case.id}: the {kind} of slice {number} is missing")
    return lines


def _structure(raw: Any) -> LabelClass:
    raw = exact(raw, LabelClass, "structure")
    value = of(raw["value"], int, "structure value")
    if not 0 < value <= 255:
        raise DataError(f"label value {value} is not in 1..255", where="structure", do=CONVERT)
    return LabelClass(of(raw["name"], str, "structure name"), value)


def _case(raw: Any) -> Case:
    raw = exact(raw, Case, "case")
    id_ = of(raw["id"], str, "case id")
    where = f"case {id_}"
    slices = tuple(_slice(item, where) for item in of(raw["slices"], list, where))
    if not slices:
        raise DataError("no slices", where=where, do=CONVERT)
    volume = parse_volume(raw["volume"], where)
    fault = volume.fault([(slice_.height_px, slice_.width_px) for slice_ in slices]) if volume else ""
    if fault:
        raise DataError(fault, where=where, do=CONVERT)
    return Case(id_, of(raw["patient"], str, where), slices, volume)


def _slice(raw: Any, where: str) -> Slice:
    raw = dict(exact(raw, Slice, where))
    for one in fields(Slice):
        if one.name != "values":
            of(raw[one.name], int if one.name in ("width_px", "height_px", "channels") else str, where)
    for name in (raw["image"], raw["label"]):
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name:
            raise DataError("a file name leads out of the site's folder", where=where, do=CONVERT)
    if raw["width_px"] < 1 or raw["height_px"] < 1 or raw["channels"] not in (1, 3):
        raise DataError("a size below 1 px, or channels other than 1 or 3", where=where, do=CONVERT)
    raw["values"] = tuple(of(value, int, where) for value in of(raw["values"], list, where))
    return Slice(**raw)


def _split(raw: Any) -> Split:
    raw = exact(raw, Split, "split")
    parts = of(raw["parts"], dict, "split parts")
    return Split(
        of(raw["protocol"], str, "split protocol"),
        of(raw["seed"], int, "split seed"),
        of(raw["rule"], int, "split rule"),
        {part: tuple(of(id_, str, "split") for id_ in of(ids, list, "split")) for part, ids in parts.items()},
    )


def _consistent(manifest: Manifest) -> None:
    """Things that hold between parts of a manifest."""
    for what, names in (
        ("case id", [case.id for case in manifest.cases]),
        ("structure", [structure.name for structure in manifest.structures]),
        ("label value", [structure.value for structure in manifest.structures]),
        ("image file", [slice_.image for _, _, slice_ in manifest.slices()]),
    ):
        if len(set(names)) != len(names):
            raise DataError(f"a {what} occurs twice", where="manifest", do=CONVERT)
    for case, number, slice_ in manifest.slices():
        odd = sorted(set(slice_.values) - manifest.values)
        if odd:
            raise DataError(
                f"slice {number} has label values {odd} that no structure has",
                where=f"case {case.id}",
                do=CONVERT,
            )
