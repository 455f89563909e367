"""The engine: one site's raw images and masks -> slices and a manifest, in parallel, resumable, faults
collected.

An image that was converted before is recognised by its pixels and kept. The manifest is removed first and
written last, so an interrupted conversion has none. What a fault says names the case's pseudonym, never a
file.
"""

from __future__ import annotations

import io
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedfms.data.manifest import (
    FILE_NAME,
    VERSION,
    Case,
    Manifest,
    Slice,
    make_splits,
    pixel_sha256,
    save_manifest,
)
from fedfms.errors import DataError
from fedfms.files import write_atomic
from preprocessing.images import ENDINGS, Fault, read_image, read_label
from preprocessing.keys import Keys, open_keys
from preprocessing.recipe import LabelRule, Recipe

_FEW = 4  # cases for which starting processes costs more than it saves
Advance = Callable[[int, int], None]  # cases done, cases in all


@dataclass(frozen=True)
class Summary:
    """What became of a site: counts, size on disk, `(case id, fault)` lines, notes to show."""

    site: str
    images: int
    empty: int
    patients: int
    mb: float
    faults: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    case: str
    image: Path
    label: Path
    rule: LabelRule
    out: Path


@dataclass(frozen=True)
class _Done:
    case: str
    slice: Slice | None
    fault: str = ""


def site_folders(raw: Path) -> list[Path]:
    """Folders directly below `raw` that hold `images/` and `labels/`, by name."""
    return sorted(p for p in raw.iterdir() if (p / "images").is_dir() and (p / "labels").is_dir())


def convert_site(
    folder: Path,
    raw: Path,
    out: Path,
    site: str,
    recipe: Recipe,
    *,
    workers: int = 2,
    advance: Advance | None = None,
) -> Summary:
    """Convert `folder/images` and `folder/labels` into `out/<dataset>/<site>`.

    Args:
        raw: the raw root, beside whose data the key file is kept.
        workers: processes; 0 = this one.

    Raises:
        DataError: nothing could be converted, the key file is unreadable, or the output cannot be written.
    """
    keys = open_keys(raw, out, recipe.dataset, site)
    images, double, ignored = _files(folder / "images")
    labels, double_labels, ignored_labels = _files(folder / "labels")
    pairs, faults = _pair(images, labels, recipe)
    faults += [(stem, "several files of this name with different endings") for stem in double + double_labels]
    pairs = {stem: pair for stem, pair in pairs.items() if stem not in double + double_labels}
    target = out / recipe.dataset / site
    try:
        keys.save(_links(keys, folder, pairs, faults))
        _prepare(target)
        tasks = [_Task(keys.case_id(s), i, m, recipe.labels, target) for s, (i, m) in sorted(pairs.items())]
        done = sorted(_run(tasks, workers, advance), key=lambda result: result.case)
        manifest = _manifest(recipe, site, keys, pairs, done)
        bad = [(keys.case_id(stem), text) for stem, text in faults] + [(d.case, d.fault) for d in done if d.fault]
        _remove_strays(target, manifest)
        if manifest.cases:
            save_manifest(manifest, target)
    except OSError as error:
        raise DataError(
            f"cannot write: {error.strerror}",
            where=f"site {site}",
            do="check space and rights, then run it again",
        ) from error
    notes = [note for note in (keys.note, _ignored(ignored + ignored_labels)) if note]
    return _summary(manifest, target, sorted(bad), notes)


def _files(folder: Path) -> tuple[dict[str, Path], list[str], int]:
    """Files by stem relative to the folder, stems that occur twice, and how many files of other kinds there
    are.
    """
    found: dict[str, Path] = {}
    double, ignored = [], 0
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() not in ENDINGS:
            ignored += 1
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            double.append(stem)
        found[stem] = path
    return found, double, ignored


def _ignored(count: int) -> str:
    return f"{count} files that are no PNG, JPEG, TIFF or BMP were left alone" if count else ""


def _pair(
    images: dict[str, Path], labels: dict[str, Path], recipe: Recipe
) -> tuple[dict[str, tuple[Path, Path]], list[tuple[str, str]]]:
    """Pairs by the image's stem; `(stem, fault)` of what has no partner."""
    pairs, faults, used = {}, [], set()
    for stem, image in images.items():
        names = [stem + suffix for suffix in recipe.mask_suffixes if stem + suffix in labels]
        used.update(names)
        if len(names) == 1:
            pairs[stem] = image, labels[names[0]]
        else:
            faults.append((stem, "the image has several masks" if names else "the image has no mask"))
    for name in labels.keys() - used:
        suffix = next((s for s in recipe.mask_suffixes if s and name.endswith(s)), "")
        faults.append((name.removesuffix(suffix), "the mask has no image"))
    return pairs, faults


def _links(
    keys: Keys, folder: Path, pairs: dict[str, tuple[Path, Path]], faults: Sequence[tuple[str, str]]
) -> dict[str, dict[str, str]]:
    """The table that leads from an id back to the files, which stays at the site."""
    table = {keys.case_id(stem): {"stem": stem} for stem, _ in faults}
    for stem, (image, label) in pairs.items():
        files = {"image": image.relative_to(folder).as_posix(), "label": label.relative_to(folder).as_posix()}
        table[keys.case_id(stem)] = {"stem": stem, **files}
    return table


def _prepare(target: Path) -> None:
    for part in ("images", "labels"):
        (target / part).mkdir(parents=True, exist_ok=True)
    (target / FILE_NAME).unlink(missing_ok=True)


def _run(tasks: Sequence[_Task], workers: int, advance: Advance | None) -> Iterator[_Done]:
    results = map(_convert, tasks) if workers < 1 or len(tasks) < _FEW else _parallel(tasks, workers)
    for count, done in enumerate(results, start=1):
        if advance:
            advance(count, len(tasks))
        yield done


def _parallel(tasks: Sequence[_Task], workers: int) -> Iterator[_Done]:
    # spawn: a fork beside the progress bar's thread may deadlock
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_convert, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker process died", do="run it again with --workers 0") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _convert(task: _Task) -> _Done:
    try:
        image, label = read_image(task.image), read_label(task.label, task.rule)
        if image.shape[:2] != label.shape:
            sizes = [f"{pixels.shape[1]} x {pixels.shape[0]} px" for pixels in (image, label)]
            raise Fault(f"image {sizes[0]} and mask {sizes[1]} differ")
    except Fault as fault:
        return _Done(task.case, None, str(fault))
    names = f"images/{task.case}_0.png", f"labels/{task.case}_0.png"
    for name, pixels in zip(names, (image, label), strict=True):
        _keep_or_write(task.out / name, pixels)
    return _Done(
        task.case,
        Slice(
            *names,
            width_px=image.shape[1],
            height_px=image.shape[0],
            channels=1 if image.ndim == 2 else 3,
            image_sha256=pixel_sha256(image),
            label_sha256=pixel_sha256(label),
            values=tuple(np.unique(label).tolist()),
        ),
    )


def _keep_or_write(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG of nothing but pixels, unless one with these pixels is there."""
    try:
        with Image.open(path) as opened:
            if not opened.info and np.array_equal(np.asarray(opened), pixels):
                return
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass  # not there, or cut short by an interruption: written below
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=3)
    write_atomic(path, png.getvalue())


def _manifest(
    recipe: Recipe, site: str, keys: Keys, pairs: dict[str, tuple[Path, Path]], done: Sequence[_Done]
) -> Manifest:
    patients = {keys.case_id(stem): keys.patient_id(recipe.patient(site, stem)) for stem in pairs}
    cases = tuple(Case(d.case, patients[d.case], (d.slice,)) for d in done if d.slice)
    return Manifest(VERSION, recipe.dataset, site, recipe.structures, cases, make_splits(cases))


def _remove_strays(target: Path, manifest: Manifest) -> None:
    """Delete slices of an earlier run whose raw files are gone: a withdrawn image must not live on in the
    copy.
    """
    listed = {name for _, _, s in manifest.slices() for name in (s.image, s.label)}
    for part in ("images", "labels"):
        for path in sorted((target / part).iterdir()):
            if path.suffix in (".png", ".tmp") and f"{part}/{path.name}" not in listed:
                path.unlink()


def _summary(manifest: Manifest, target: Path, faults: Sequence[tuple[str, str]], notes: Sequence[str]) -> Summary:
    patients = Counter(case.patient for case in manifest.cases)
    size = sum((target / name).stat().st_size for _, _, s in manifest.slices() for name in (s.image, s.label))
    empty = sum(not any(s.values) for _, _, s in manifest.slices())
    images = sum(1 for _ in manifest.slices())
    return Summary(manifest.site, images, empty, len(patients), size / 1e6, tuple(faults), tuple(notes))
