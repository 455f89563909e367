"""The engine: one site's raw cases -> slices and a manifest, in parallel, resumable, faults collected.

A slice that was converted before is recognised by its pixels and kept. The manifest is written last, and an
earlier one is removed before the first of its slices is changed: whatever interrupts a conversion, there is no
manifest, or one that holds. Where no case can be converted, an earlier conversion stays as it was. What a fault
says names the case's pseudonym, never a file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedfms.data.manifest import VERSION, Case, Manifest, make_splits, save_manifest
from fedfms.errors import DataError, FedfmsError
from fedfms.names import NAME_RULE, is_name
from preprocessing.images import Fault
from preprocessing.keys import Keys, open_keys
from preprocessing.onecase import Done, Task, convert_case, end_with_parent, quiet
from preprocessing.raw import RIGHTS, reason
from preprocessing.recipe import Found, Recipe
from preprocessing.target import refuse_foreign, remove_strays

_FEW = 4  # cases for which starting processes costs more than it saves
Advance = Callable[[int, int], None]  # cases done, cases in all
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """What became of a site: counts, size on disk, `(case id, fault)` lines, notes to show."""

    site: str
    cases: int
    slices: int
    empty: int
    patients: int
    mb: float
    faults: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def list_sites(raw: Path, recipe: Recipe) -> list[str]:
    """The sites that a raw folder holds.

    Raises:
        DataError: it cannot be read, is not laid out as the data set's, or a site's name cannot be a folder's.
    """
    sites = _look(recipe, lambda: recipe.sites(raw))
    if not all(is_name(site) for site in sites):
        raise DataError("a site's name cannot be one", do=f"rename it in the raw data: {NAME_RULE}")
    return sites


def convert_site(
    raw: Path, out: Path, site: str, recipe: Recipe, workers: int = 2, advance: Advance | None = None
) -> Summary:
    """Convert a site of the raw folder into `out/<dataset>/<site>`.

    Args:
        raw: the raw root; no file outside of it is opened, and the key file is kept in it.
        workers: processes; 0 = this one.

    Raises:
        DataError: the raw folder or the key file cannot be read, the output cannot be written, or it holds files
            that no conversion made.
    """
    keys = open_keys(raw, out, recipe.dataset, site)
    found = _look(recipe, lambda: recipe.find(raw, site), f"site {site}")
    links = _links(keys, raw, found)
    target = out / recipe.dataset / site
    values = frozenset({0, *(structure.value for structure in recipe.structures)})
    try:
        refuse_foreign(target, site)
        if links:  # an empty folder may be a share that is not mounted: no key is made in its place
            keys.save(links)
        root = raw.resolve()
        tasks = [Task(keys.case_id(n), case, recipe.read, root, values, target) for n, case in found.cases.items()]
        done = sorted(_run(tasks, workers, advance), key=lambda result: result.id)
        manifest = _manifest(recipe, site, keys, found, done)
        if manifest.cases:
            os.sync()  # the slices are on the disk before a manifest says so
            save_manifest(manifest, target)
            remove_strays(target, manifest)  # last: until now an earlier manifest listed them
        faults = [(keys.case_id(n), text) for n, text in found.faults] + [(d.id, d.fault) for d in done if d.fault]
        notes = (keys.note if links else "", _ignored(found.ignored), *found.notes)
        return _summary(manifest, target, sorted(faults), [note for note in notes if note])
    except OSError as error:
        do = "check space and rights, then run it again"
        raise DataError(f"cannot write: {reason(error)}", where=f"site {site}", do=do) from error


def _look(recipe: Recipe, look: Callable[[], T], where: str = "") -> T:
    """What a data set's own code finds in a raw folder; of its errors only those texts that are safe to show."""
    try:
        with quiet():
            return look()
    except FedfmsError:
        raise
    except Fault as fault:
        raise DataError(str(fault), where=where) from fault
    except OSError as error:
        raise DataError(f"the raw folder cannot be read: {reason(error)}", where=where, do=RIGHTS) from error
    except Exception as error:
        raise DataError(
            f"the raw folder is not laid out as {recipe.dataset} is ({type(error).__name__})", where=where,
            do="see `python -m preprocessing --help`",
        ) from error  # fmt: skip


def _ignored(count: int) -> str:
    return f"{count} files of kinds that this data set does not use were left alone" if count else ""


def _links(keys: Keys, raw: Path, found: Found) -> dict[str, dict[str, str]]:
    """The table that leads from an id back to the files, which stays at the site."""
    table = {keys.case_id(name): {"name": name} for name, _ in found.faults}
    for name, case in found.cases.items():
        files = {
            role: (path.relative_to(raw) if path.is_relative_to(raw) else path).as_posix()
            for role, path in case.files.items()
        }
        part = {} if case.part is None else {"part": str(case.part)}
        table[keys.case_id(name)] = {**files, **part, "name": name}
    return table


def _run(tasks: Sequence[Task], workers: int, advance: Advance | None) -> Iterator[Done]:
    results = map(convert_case, tasks) if workers < 1 or len(tasks) < _FEW else _parallel(tasks, workers)
    for count, done in enumerate(results, start=1):
        if advance:
            advance(count, len(tasks))
        yield done


def _parallel(tasks: Sequence[Task], workers: int) -> Iterator[Done]:
    # spawn: a fork beside the progress bar's thread may deadlock
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        # processes inherit what is blocked: Ctrl-C reaches this one alone, and they finish the slice at hand
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        futures = [pool.submit(convert_case, task) for task in tasks]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker process died", do="run it again with --workers 0") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _manifest(recipe: Recipe, site: str, keys: Keys, found: Found, done: Sequence[Done]) -> Manifest:
    patients = {keys.case_id(name): keys.patient_id(case.patient) for name, case in found.cases.items()}
    cases = tuple(Case(d.id, patients[d.id], d.slices, d.volume) for d in done if d.slices)
    return Manifest(VERSION, recipe.dataset, site, recipe.structures, cases, make_splits(cases), dict(recipe.options))


def _summary(manifest: Manifest, target: Path, faults: Sequence[tuple[str, str]], notes: Sequence[str]) -> Summary:
    return Summary(
        site=manifest.site,
        **manifest.counts,
        mb=sum((target / name).stat().st_size for _, _, s in manifest.slices() for name in (s.image, s.label)) / 1e6,
        faults=tuple(faults),
        notes=tuple(notes),
    )
