"""Validation of converted data against the manifest: every fault of a site, one line each, by case id."""

from pathlib import Path

import numpy as np
from PIL import Image

from fedfms.data.manifest import (
    FILE_NAME,
    FORMATS,
    Manifest,
    Slice,
    Split,
    load_manifest,
    make_splits,
    metadata,
    missing_files,
    pixel_sha256,
)
from fedfms.errors import DataError


def find_sites(root: Path) -> list[Path]:
    """Site folders of a data root `<dataset>/<site>`; the root itself if it is a site's folder.

    Raises:
        DataError: there are none.
    """
    if (root / FILE_NAME).is_file():
        return [root]
    found = sorted(
        path
        for path in root.glob("*/*")
        if (path / FILE_NAME).is_file() or ((path / "images").is_dir() and (path / "labels").is_dir())
    )
    if not found:
        raise DataError("no folder <dataset>/<site> found", do="name the folder that was --out of the conversion")
    return found


def check_site(folder: Path) -> list[str]:
    """Faults of a site's folder: manifest, files, sizes, hashes, label values, metadata, splits, unlisted files."""
    try:
        manifest = load_manifest(folder)
        faults = missing_files(manifest, folder)
    except DataError as error:
        return [error.line()]
    if (manifest.dataset, manifest.site) != (folder.resolve().parent.name, folder.resolve().name):
        faults.append("the manifest names another data set or site than the folder")
    for case, number, slice_ in manifest.slices():
        faults += [f"case {case.id}: slice {number}: {text}" for text in _slice_faults(folder, manifest, slice_)]
    return faults + _split_faults(manifest) + _unlisted(folder, manifest)


def _slice_faults(folder: Path, manifest: Manifest, slice_: Slice) -> list[str]:
    faults: list[str] = []
    for kind, name, digest in (
        ("image", slice_.image, slice_.image_sha256),
        ("label", slice_.label, slice_.label_sha256),
    ):
        if not (folder / name).is_file():
            continue  # reported by `missing_files`
        try:
            with Image.open(folder / name, formats=FORMATS) as opened:
                pixels, mode, has_metadata = np.asarray(opened), opened.mode, bool(metadata(opened))
        except Exception:  # noqa: BLE001 - a damaged file can raise nearly anything inside Pillow
            faults.append(f"the {kind} is damaged, or neither PNG nor WebP")
            continue
        if has_metadata:
            faults.append(f"the {kind} carries metadata")
        expected = "RGB" if kind == "image" and slice_.channels == 3 else "L"
        if pixels.shape[:2] != (slice_.height_px, slice_.width_px) or mode != expected:
            faults.append(f"the {kind} has another size or mode than in the manifest")
        values = set(np.unique(pixels).tolist()) if kind == "label" else set(slice_.values)
        if unknown := sorted(values - manifest.values):
            faults.append(f"label values {unknown} that no structure has")
        elif values != set(slice_.values):
            faults.append("the label values are not those in the manifest")
        if pixel_sha256(pixels) != digest:
            faults.append(f"the {kind}'s pixels have changed since the conversion (hash)")
    return faults


def _split_faults(manifest: Manifest) -> list[str]:
    """Deviations of the stored splits from the split rule, and patients in several parts, which invalidates scores."""
    expected = {split.protocol: split for split in make_splits(manifest.cases)}
    patient = {case.id: case.patient for case in manifest.cases}
    missing = sorted(expected.keys() - {split.protocol for split in manifest.splits})
    faults = [f"split {protocol}: missing" for protocol in missing]
    for split in manifest.splits:
        name, rule = f"split {split.protocol}", expected[split.protocol]
        stored, due = _parts_by_case(split), _parts_by_case(rule)
        sides: dict[str, set[str]] = {}
        for id_, parts in stored.items():
            sides.setdefault(patient.get(id_, id_), set()).update(parts)
        faults += [f"patient {one}: {name}: on both sides" for one, parts in sides.items() if len(parts) > 1]
        if (split.seed, split.rule) != (rule.seed, rule.rule):
            faults.append(f"{name}: another seed or rule version")
            continue
        for id_ in sorted(stored.keys() | due.keys()):
            if stored.get(id_) != due.get(id_):
                faults.append(f"case {id_}: {name}: in {stored.get(id_, [])}, the rule gives {due.get(id_, [])}")
    return faults


def _parts_by_case(split: Split) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part, ids in split.parts.items():
        for id_ in ids:
            found.setdefault(id_, []).append(part)
    return found


def _unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not list; counted and not named, because a name may identify a patient."""
    listed = {FILE_NAME, *(name for _, _, s in manifest.slices() for name in (s.image, s.label))}
    count = sum(p.is_file() and p.relative_to(folder).as_posix() not in listed for p in folder.rglob("*"))
    return [f"{count} files that the manifest does not list"] if count else []
