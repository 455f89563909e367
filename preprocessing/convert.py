"""The conversion engine: the raw cases of one site -> slices and a manifest, in parallel and resumable.

Slices whose pixels are already in the output are not written again. The manifest is written last, and an earlier one is
removed before the first of its slices changes, so an interrupted conversion leaves no manifest or a valid one. If no
case can be converted, an earlier conversion stays unchanged. Faults name a case by its pseudonym, never a file.
"""

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
from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.keys import Keys, open_keys
from fedfms.preprocessing.onecase import Done, Task, convert_case, exit_with_parent, silenced
from fedfms.preprocessing.raw import readable, reason
from fedfms.preprocessing.recipe import Advance, Found, Recipe
from fedfms.preprocessing.target import reject_foreign_files, remove_stale

_FEW = 4  # fewer cases are converted in this process
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """The result of one site."""

    site: str
    cases: int
    slices: int
    empty: int  # slices without any structure
    patients: int
    mb: float  # size of the slices on disk
    faults: tuple[tuple[str, str], ...]  # (case id, fault)
    notes: tuple[str, ...]  # lines to show


def list_sites(raw: Path, recipe: Recipe) -> list[str]:
    """The sites in a raw folder.

    Raises:
        DataError: the folder cannot be read, has another layout than the data set, or the name of a site is not a name.
    """
    sites = _search(recipe, lambda: recipe.sites(raw))
    if not all(is_name(site) for site in sites):
        raise DataError("the folder of a site has a name that is not allowed", do=f"rename it: {NAME_RULE}")
    return sites


def convert_site(
    raw: Path, out: Path, site: str, recipe: Recipe, workers: int = 2, advance: Advance | None = None
) -> Summary:
    """Convert a site of the raw folder into `out/<dataset>/<site>`.

    Args:
        raw: the raw folder; no file outside of it is opened, and the key file is stored in it.
        workers: number of processes; 0: convert in this process.

    Raises:
        DataError: the raw folder or the key file cannot be read, the output cannot be written, or it holds files
            that no conversion wrote.
    """
    keys = open_keys(raw, out, recipe.dataset, site)
    found = _search(recipe, lambda: recipe.find(raw, site), site)
    links = _links(keys, raw, found)
    target = out / recipe.dataset / site
    values = frozenset({0, *(structure.value for structure in recipe.structures)})
    try:
        reject_foreign_files(target, site)
        if links:  # an empty folder may be a share that is not mounted; a new key there would shadow the real one
            keys.save(links)
        root, cases = raw.resolve(), found.cases.items()
        tasks = [Task(keys.case_id(name), case, recipe.read, root, values, target) for name, case in cases]
        done = sorted(_run(tasks, workers, advance), key=lambda result: result.id)
        manifest = _manifest(recipe, site, keys, found, done)
        if manifest.cases:
            os.sync()  # slices reach the disk before the manifest
            save_manifest(manifest, target)
            remove_stale(target, manifest)  # after the new manifest, because the earlier one lists these files
        faults = [(keys.case_id(n), text) for n, text in found.faults] + [(d.id, d.fault) for d in done if d.fault]
        ignored = f"{found.ignored} files were ignored: this data set does not use files of their kind"
        notes = (keys.note if links else "", ignored if found.ignored else "", *found.notes)
        return _summary(manifest, target, sorted(faults), [note for note in notes if note])
    except OSError as error:
        do = "check disk space and rights, then run the command again"
        raise DataError(f"cannot write: {reason(error)}", where=f"site {site}", do=do) from error


def _search(recipe: Recipe, look: Callable[[], T], site: str = "") -> T:
    """The result of a data set's own code on a raw folder; of its errors, only texts that are safe to show."""
    where = f"site {site}" if site else ""
    try:
        with silenced(), readable("the raw folder", site=site):
            return look()
    except FedfmsError:
        raise
    except Fault as fault:
        raise DataError(str(fault), where=where) from fault
    except Exception as error:
        what = f"the raw folder does not have the layout of {recipe.dataset} ({type(error).__name__})"
        raise DataError(what, where=where, do="see `fedfms prepare --help`") from error


def _links(keys: Keys, raw: Path, found: Found) -> dict[str, dict[str, str]]:
    """The table from ids to files, which stays at the site."""
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
    # spawn, because a fork while the thread of the progress bar runs may deadlock
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=exit_with_parent) as pool:
        # workers inherit the blocked signal: Ctrl-C reaches this process only, and workers finish their current slice
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        futures = [pool.submit(convert_case, task) for task in tasks]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker process died", do="run the command again with --workers 0") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _manifest(recipe: Recipe, site: str, keys: Keys, found: Found, done: Sequence[Done]) -> Manifest:
    patients = {keys.case_id(name): keys.patient_id(case.patient) for name, case in found.cases.items()}
    cases = tuple(Case(d.id, patients[d.id], d.slices, d.volume) for d in done if d.slices)
    return Manifest(VERSION, recipe.dataset, site, recipe.structures, cases, make_splits(cases), dict(recipe.options))


def _summary(manifest: Manifest, target: Path, faults: Sequence[tuple[str, str]], notes: Sequence[str]) -> Summary:
    files = [target / name for _, _, slice_ in manifest.slices() for name in (slice_.image, slice_.label)]
    mb = sum(path.stat().st_size for path in files) / 1e6
    return Summary(manifest.site, **manifest.counts, mb=mb, faults=tuple(faults), notes=tuple(notes))
