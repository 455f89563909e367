"""Damaged images of a site: detected when its data are opened, and skipped for the whole run.

A study sets the maximum number per site (`data.max_unreadable_images`). Splits are made from the complete manifest
first, so no patient changes sides because of a damaged file. A run that has skipped an image skips it in every later
round, even if the file is repaired, and records this at the site: the training set stays the same in all rounds.
"""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from fedfms.data.source import CHECK, Item, Source
from fedfms.errors import DataError
from fedfms.files import write_atomic
from fedfms.schema import STRICT, parse_bytes, to_plain

Place = tuple[str, int]  # case and slice
RECORD = "damaged_images.json"  # in a run's folder at the site
_log = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class _Record:
    format: Literal[1]
    sites: Mapping[str, tuple[Place, ...]]


def find_damaged(
    site: str,
    items: Sequence[Item],
    source: Source,
    limit: int,
    known: Collection[Place],
    check_stop: Callable[[], None],
) -> frozenset[Place]:
    """The slices whose image or label is missing, damaged or changed, and the `known` ones, among `items`.

    Args:
        check_stop: called before each file is read; may raise to stop there.

    Raises:
        DataError: more than `limit`, including the known ones.
    """
    damaged = {(item.case, item.slice) for item in items} & set(known)
    for item in items:
        check_stop()
        place = item.case, item.slice
        if place not in damaged:
            try:
                source.check(item)
            except DataError as fault:
                _log.info("%s", fault.line())  # names the case: for the site's own log only
                damaged.add(place)
    if len(damaged) > limit:
        what = f"{len(damaged)} images are damaged or missing, data.max_unreadable_images is {limit}"
        raise DataError(what, where=f"site {site}", do=CHECK)
    if damaged:
        _log.warning("site %s: the run skips %d damaged or missing images", site, len(damaged))
    return frozenset(damaged)


def read_record(path: Path) -> dict[str, frozenset[Place]]:
    """The images that a run has skipped so far, by site; empty without a record.

    Raises:
        DataError: the record is damaged.
    """
    where, do = "the run's record of damaged images", "remove the run's folder at the site and start again"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=where, do=do) from error
    record = parse_bytes(_Record, text, DataError, where=where, do=do, machine_written=True)
    return {site: frozenset(places) for site, places in record.sites.items()}


def write_record(path: Path, damaged: Mapping[str, Collection[Place]]) -> None:
    """Store the images that a run skips, by site; only the site's user can read it. No images, no file.

    Raises:
        OSError: as `write_atomic`.
    """
    sites = {site: tuple(sorted(places)) for site, places in damaged.items() if places}
    if sites and read_record(path) != {site: frozenset(places) for site, places in sites.items()}:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(to_plain(_Record(1, sites))), mode=0o600)
