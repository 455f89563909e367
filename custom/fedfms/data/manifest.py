"""The data contract: what lies in `ROOT/<dataset>/<site>/`, and how it is read and written.

    manifest.json           this file's dataclasses, written last and at once: a folder without it is not
    whole images/<case>_<k>.png   uint8, grey or RGB, native resolution, lossless labels/<case>_<k>.png
    uint8, the label values themselves, same size

Ids of cases and patients are pseudonyms. No original name, path or header field enters the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfms.data import splits
from fedfms.errors import DataError
from fedfms.files import write_atomic

VERSION = 1
FILE_NAME = "manifest.json"
_CONVERT = "convert the site again with `python -m preprocessing`"


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
    """Slices of one examination; `patient` groups the cases that must stay on one side of a split."""

    id: str
    patient: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Split:
    """Case ids by part, for one protocol and seed, under one version of the rule (`fedfms.data.splits`)."""

    protocol: str
    seed: int
    rule: int
    parts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Manifest:
    """A site's data set."""

    version: int
    dataset: str
    site: str
    structures: tuple[LabelClass, ...]
    cases: tuple[Case, ...]
    splits: tuple[Split, ...]

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

    def slices(self) -> Iterator[tuple[Case, int, Slice]]:
        """Every slice with its case and its number in it."""
        for case in self.cases:
            for number, slice_ in enumerate(case.slices):
                yield case, number, slice_


def make_splits(cases: tuple[Case, ...], seed: int = 0) -> tuple[Split, ...]:
    """The split of each protocol, by case id, sorted."""
    patients = Manifest(VERSION, "", "", (), cases, ()).patients
    made = []
    for protocol in splits.PROTOCOLS:
        parts = {
            part: tuple(sorted(case.id for case in cases if case.patient in set(members)))
            for part, members in splits.assign(patients, protocol, seed).items()
        }
        made.append(Split(protocol, seed, splits.RULE_VERSION, parts))
    return tuple(made)


def pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of decoded pixels (H, W) or (H, W, C), uint8; the shape is hashed too."""
    digest = hashlib.sha256(("x".join(map(str, pixels.shape)) + ":").encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


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
        raise DataError("there is no manifest.json", do=_CONVERT) from error
    except (OSError, ValueError) as error:
        raise DataError("manifest.json cannot be read as JSON", do=_CONVERT) from error
    return parse_manifest(raw)


def parse_manifest(raw: Any) -> Manifest:
    """The manifest that plain JSON values describe; the inverse of `dataclasses.asdict`.

    Raises:
        DataError: as `load_manifest`.
    """
    if not isinstance(raw, dict):
        raise DataError("manifest.json must hold one object", do=_CONVERT)
    if raw.get("version") != VERSION:
        raise DataError(f"manifest version {raw.get('version')!r} is not {VERSION}", do=_CONVERT)
    _exact(raw, Manifest, "manifest")
    manifest = Manifest(
        version=VERSION,
        dataset=_of(raw["dataset"], str, "dataset"),
        site=_of(raw["site"], str, "site"),
        structures=tuple(_structure(item) for item in _of(raw["structures"], list, "structures")),
        cases=tuple(_case(item) for item in _of(raw["cases"], list, "cases")),
        splits=tuple(_split(item) for item in _of(raw["splits"], list, "splits")),
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
                    do=_CONVERT,
                )
            if not path.is_file():
                lines.append(f"case {case.id}: the {kind} of slice {number} is missing")
    return lines


def _exact(raw: Any, cls: type, where: str) -> dict[str, Any]:
    """`raw`, if it is an object with just the fields of `cls`."""
    if not isinstance(raw, dict):
        raise DataError("expected an object", where=where, do=_CONVERT)
    known = {f.name for f in fields(cls)}
    if set(raw) != known:
        wrong = [f"unknown {sorted(set(raw) - known)}"] if set(raw) - known else []
        wrong += [f"missing {sorted(known - set(raw))}"] if known - set(raw) else []
        raise DataError(f"keys: {', '.join(wrong)}", where=where, do=_CONVERT)
    return raw


def _of(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise DataError(f"expected {kind.__name__}", where=where, do=_CONVERT)
    return value


def _structure(raw: Any) -> LabelClass:
    raw = _exact(raw, LabelClass, "structure")
    value = _of(raw["value"], int, "structure value")
    if not 0 < value <= 255:
        raise DataError(f"label value {value} is not in 1..255", where="structure", do=_CONVERT)
    return LabelClass(_of(raw["name"], str, "structure name"), value)


def _case(raw: Any) -> Case:
    raw = _exact(raw, Case, "case")
    id_ = _of(raw["id"], str, "case id")
    where = f"case {id_}"
    slices = tuple(_slice(item, where) for item in _of(raw["slices"], list, where))
    if not slices:
        raise DataError("no slices", where=where, do=_CONVERT)
    return Case(id_, _of(raw["patient"], str, where), slices)


def _slice(raw: Any, where: str) -> Slice:
    raw = dict(_exact(raw, Slice, where))
    for field in fields(Slice):
        if field.name != "values":
            _of(raw[field.name], int if field.name in ("width_px", "height_px", "channels") else str, where)
    for name in (raw["image"], raw["label"]):
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name:
            raise DataError("a file name leads out of the site's folder", where=where, do=_CONVERT)
    if raw["width_px"] < 1 or raw["height_px"] < 1 or raw["channels"] not in (1, 3):
        raise DataError("a size below 1 px, or channels other than 1 or 3", where=where, do=_CONVERT)
    raw["values"] = tuple(_of(value, int, where) for value in _of(raw["values"], list, where))
    return Slice(**raw)


def _split(raw: Any) -> Split:
    raw = _exact(raw, Split, "split")
    parts = _of(raw["parts"], dict, "split parts")
    return Split(
        _of(raw["protocol"], str, "split protocol"),
        _of(raw["seed"], int, "split seed"),
        _of(raw["rule"], int, "split rule"),
        {part: tuple(_of(id_, str, "split") for id_ in _of(ids, list, "split")) for part, ids in parts.items()},
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
            raise DataError(f"a {what} occurs twice", where="manifest", do=_CONVERT)
    for case, number, slice_ in manifest.slices():
        odd = sorted(set(slice_.values) - manifest.values)
        if odd:
            raise DataError(
                f"slice {number} has label values {odd} that no structure has",
                where=f"case {case.id}",
                do=_CONVERT,
            )
