"""Images of a site that cannot be used: found when its data are opened, and left out of the whole run.

A study says how many a site may have (`data.max_unreadable_images`). Splits are made of the manifest before anything is left
out: no patient changes sides because of a file. A run that has once left an image out goes on to do so, whatever
becomes of the file, and keeps a record of it at the site: what it trains on does not change from round to round.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from fedfms.data.source import CHECK, Item, Source
from fedfms.errors import DataError
from fedfms.files import write_atomic

Place = tuple[str, int]  # case and slice
RECORD = "left_out.json"  # in a run's folder at the site
_FORMAT = 1
_log = logging.getLogger(__name__)


def find_damaged(
    site: str, items: Sequence[Item], source: Source, limit: int, known: Collection[Place], go_on: Callable[[], None]
) -> frozenset[Place]:
    """The slices, of `items` and beside those `known`, whose image or label is missing, damaged or changed.

    Args:
        go_on: called before each file is read; may raise to stop there.

    Raises:
        DataError: with the known ones there are more than `limit`.
    """
    found = set()
    for item in items:
        go_on()
        place = item.case, item.slice
        if place not in known:
            try:
                source.check(item)
            except DataError as fault:
                _log.info("%s", fault.line())  # names the case: for the site's own log alone
                found.add(place)
    damaged = frozenset(found | {(item.case, item.slice) for item in items} & set(known))
    if len(damaged) > limit:
        raise DataError(
            f"{len(damaged)} images are damaged or missing, data.max_unreadable_images is {limit}", where=f"site {site}",
            do=CHECK,
        )  # fmt: skip
    if damaged:
        _log.warning("site %s: %d damaged or missing images are left out of the run", site, len(damaged))
    return damaged


def read_record(path: Path) -> dict[str, frozenset[Place]]:
    """What a run has left out so far, by site; empty where there is no record.

    Raises:
        DataError: the record is damaged.
    """
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != _FORMAT:
            raise ValueError("of another version")
        return {
            str(site): frozenset((str(case), int(number)) for case, number in places)
            for site, places in raw["sites"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = "the run's record of the images that it leaves out cannot be read"
        raise DataError(what, do="remove the run's folder at the site and start again") from error


def write_record(path: Path, damaged: Mapping[str, Collection[Place]]) -> None:
    """Keep what a run leaves out, by site, for the site's own eyes; nothing is written where that is nothing.

    Raises:
        OSError: as `write_atomic`.
    """
    sites = {site: sorted(places) for site, places in damaged.items() if places}
    if sites and read_record(path) != {site: frozenset(places) for site, places in sites.items()}:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"format": _FORMAT, "sites": sites}), mode=0o600)
