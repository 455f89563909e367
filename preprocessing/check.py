"""Is a converted folder what its manifest says? Every fault of every site, a line each, by case id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedfms.data.manifest import (
    FILE_NAME,
    FORMATS,
    Case,
    Manifest,
    Slice,
    load_manifest,
    make_splits,
    metadata,
    missing_files,
    pixel_sha256,
)
from fedfms.errors import DataError


def find_sites(root: Path) -> list[Path]:
    """Site folders of a data root `<dataset>/<site>`, or the root itself where it is a site's folder.

    Raises:
        DataError: there is none.
    """
    if (root / FILE_NAME).is_file():
        return [root]
    found = sorted(
        p
        for p in root.glob("*/*")
        if (p / FILE_NAME).is_file() or ((p / "images").is_dir() and (p / "labels").is_dir())
    )
    if not found:
        raise DataError("there is no <dataset>/<site> folder here", do="name the folder that --out named")
    return found


def check_site(folder: Path) -> list[str]:
    """Faults of a site's folder: manifest, files, sizes, hashes, label values, metadata, splits, strays."""
    try:
        manifest = load_manifest(folder)
        faults = missing_files(manifest, folder)
    except DataError as error:
        return [error.line()]
    if (manifest.dataset, manifest.site) != (folder.resolve().parent.name, folder.resolve().name):
        faults.append("the manifest is of another data set or site than the folder's name says")
    for case, number, slice_ in manifest.slices():
        faults += [f"case {case.id}: slice {number}: {text}" for text in _slice_faults(folder, manifest, slice_)]
    return faults + _split_faults(manifest) + _strays(folder, manifest)


def _slice_faults(folder: Path, manifest: Manifest, slice_: Slice) -> list[str]:
    faults: list[str] = []
    for kind, name, digest in (
        ("image", slice_.image, slice_.image_sha256),
        ("label", slice_.label, slice_.label_sha256),
    ):
        if not (folder / name).is_file():
            continue  # named by missing_files
        try:
            with Image.open(folder / name, formats=FORMATS) as opened:
                pixels, mode, told = np.asarray(opened), opened.mode, metadata(opened)
        except Exception:  # noqa: BLE001 - a damaged file can raise nearly anything inside Pillow
            faults.append(f"the {kind} is damaged, or neither PNG nor WebP")
            continue
        if told:
            faults.append(f"the {kind} carries metadata")
        expected = "RGB" if kind == "image" and slice_.channels == 3 else "L"
        if pixels.shape[:2] != (slice_.height_px, slice_.width_px) or mode != expected:
            faults.append(f"the {kind} has another size or mode than the manifest says")
        if kind == "label":
            faults += _value_faults(manifest, slice_, set(np.unique(pixels).tolist()))
        if pixel_sha256(pixels) != digest:
            faults.append(f"the {kind}'s pixels are not those that were converted (hash)")
    return faults


def _value_faults(manifest: Manifest, slice_: Slice, found: set[int]) -> list[str]:
    unknown = sorted(found - manifest.values)
    if unknown:
        return [f"label values {unknown} that no structure has"]
    return [] if found == set(slice_.values) else ["the label values are not those that the manifest lists"]


def _split_faults(manifest: Manifest) -> list[str]:
    """Cases that are not where the rule puts them."""
    faults = []
    right = {split.protocol: split for split in make_splits(manifest.cases)}
    for missing in sorted(right.keys() - {split.protocol for split in manifest.splits}):
        faults.append(f"split {missing}: missing")
    for split in manifest.splits:
        if split.protocol not in right or (split.seed, split.rule) != (0, right[split.protocol].rule):
            faults.append(f"split {split.protocol}: unknown protocol, or of another seed or rule version")
            continue
        listed = [(part, id_) for part, ids in split.parts.items() for id_ in ids]
        due = {(part, id_) for part, ids in right[split.protocol].parts.items() for id_ in ids}
        wrong = sorted({id_ for _, id_ in set(listed) ^ due})
        faults += [f"case {id_}: split {split.protocol}: not in the part that the rule gives" for id_ in wrong]
        if len(set(listed)) != len(listed):
            faults.append(f"split {split.protocol}: a case is listed twice")
    return faults + _crossing(manifest.cases, manifest)


def _crossing(cases: tuple[Case, ...], manifest: Manifest) -> list[str]:
    """Patients on both sides of a split: the fault that makes a score worthless."""
    patient = {case.id: case.patient for case in cases}
    faults = []
    for split in manifest.splits:
        sides: dict[str, set[str]] = {}
        for part, ids in split.parts.items():
            for id_ in ids:
                sides.setdefault(patient.get(id_, id_), set()).add(part)
        faults += [
            f"patient {p}: split {split.protocol}: on both sides" for p, parts in sides.items() if len(parts) > 1
        ]
    return faults


def _strays(folder: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not list; they are counted, not named, for a name may say too much."""
    listed = {FILE_NAME, *(name for _, _, s in manifest.slices() for name in (s.image, s.label))}
    count = sum(p.is_file() and p.relative_to(folder).as_posix() not in listed for p in folder.rglob("*"))
    return [f"{count} files that the manifest does not list"] if count else []
