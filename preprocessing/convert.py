"""The engine: one site's raw images and masks -> slices and a manifest, in parallel, resumable, faults
collected.

An image that was converted before is recognised by its pixels and kept. The manifest is removed before the
first slice is written and comes back last, so an interrupted conversion has none; where no image can be
converted, an earlier conversion stays as it was. What a fault says names the case's pseudonym, never a file.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedfms.data.manifest import (
    VERSION,
    Case,
    Manifest,
    Slice,
    make_splits,
    pixel_sha256,
    save_manifest,
)
from fedfms.errors import DataError
from preprocessing.images import Fault, read_image, read_label
from preprocessing.keys import Keys, open_keys
from preprocessing.raw import Found, find_pairs
from preprocessing.recipe import LabelRule, Recipe
from preprocessing.target import begin, keep_or_write, refuse_foreign, remove_strays

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


def convert_site(
    folder: Path, raw: Path, out: Path, site: str, recipe: Recipe, *, workers: int = 2, advance: Advance | None = None
) -> Summary:
    """Convert `folder/images` and `folder/labels` into `out/<dataset>/<site>`.

    Args:
        raw: the raw root, beside whose data the key file is kept.
        workers: processes; 0 = this one.

    Raises:
        DataError: the raw folder or the key file cannot be read, the output cannot be written, or it holds files
            that no conversion made.
    """
    keys = open_keys(raw, out, recipe.dataset, site)
    found = find_pairs(folder, site, recipe)
    links = _links(keys, folder, found)
    target = out / recipe.dataset / site
    try:
        refuse_foreign(target, site)
        if links:  # an empty folder may be a share that is not mounted: no key is made in its place
            keys.save(links)
        tasks = [_Task(keys.case_id(s), p.image, p.label, recipe.labels, target) for s, p in found.pairs.items()]
        done = sorted(_run(tasks, workers, advance), key=lambda result: result.case)
        manifest = _manifest(recipe, site, keys, found, done)
        if manifest.cases:
            remove_strays(target, manifest)
            save_manifest(manifest, target)
        faults = [(keys.case_id(s), text) for s, text in found.faults] + [(d.case, d.fault) for d in done if d.fault]
        notes = (keys.note if links else "", _ignored(found.ignored))
        return _summary(manifest, target, sorted(faults), [note for note in notes if note])
    except OSError as error:
        do = "check space and rights, then run it again"
        raise DataError(f"cannot write: {error.strerror}", where=f"site {site}", do=do) from error


def _ignored(count: int) -> str:
    return f"{count} files that are no PNG, JPEG, TIFF or BMP were left alone" if count else ""


def _links(keys: Keys, folder: Path, found: Found) -> dict[str, dict[str, str]]:
    """The table that leads from an id back to the files, which stays at the site."""
    table = {keys.case_id(stem): {"stem": stem} for stem, _ in found.faults}
    for stem, pair in found.pairs.items():
        files = {"image": pair.image.relative_to(folder).as_posix(), "label": pair.label.relative_to(folder).as_posix()}
        table[keys.case_id(stem)] = {"stem": stem, **files}
    return table


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
    begin(task.out)
    names = f"images/{task.case}_0.png", f"labels/{task.case}_0.png"
    for name, pixels in zip(names, (image, label), strict=True):
        keep_or_write(task.out / name, pixels)
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


def _manifest(recipe: Recipe, site: str, keys: Keys, found: Found, done: Sequence[_Done]) -> Manifest:
    patients = {keys.case_id(stem): keys.patient_id(pair.patient) for stem, pair in found.pairs.items()}
    cases = tuple(Case(d.case, patients[d.case], (d.slice,)) for d in done if d.slice)
    return Manifest(VERSION, recipe.dataset, site, recipe.structures, cases, make_splits(cases))


def _summary(manifest: Manifest, target: Path, faults: Sequence[tuple[str, str]], notes: Sequence[str]) -> Summary:
    patients = Counter(case.patient for case in manifest.cases)
    size = sum((target / name).stat().st_size for _, _, s in manifest.slices() for name in (s.image, s.label))
    empty = sum(not any(s.values) for _, _, s in manifest.slices())
    images = sum(1 for _ in manifest.slices())
    return Summary(manifest.site, images, empty, len(patients), size / 1e6, tuple(faults), tuple(notes))
