"""Splits as data: a file that says who is in which part, so that another machine or a reader of a paper can see that
it has the same split, and no image or id leaves the house.

Of each site and part: the numbers of patients and slices, and a digest: the SHA-256 of the part's image hashes
(`pixel_sha256`, hex), sorted, joined by line breaks. The labels play no part, as they play none in the rule.

What a digest tells: nobody can go from it to pixels, which are unguessable; but whoever already has images, of a public
collection for instance, can test whether a part is just these. Of a set of images that is a test of the whole set, of
one image a test of that one, and of one patient's images a test of the patient. So a part has a digest only with
`FEWEST` different images, and of `FEWEST` patients; black images, which anybody can guess, do not count. Of other parts
the numbers alone are compared: that their images are the same is known where both "all" and the one other part have a
digest, and else nobody sees it when training and validation exchange patients of like numbers. A comparison says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from fedfms.data import splits
from fedfms.data.manifest import blank_sha256
from fedfms.data.site import find_items, split_items
from fedfms.data.source import Item
from fedfms.errors import DataError
from fedfms.files import write_atomic
from fedfms.settings import SiteSettings
from fedfms.study import PHANTOM, Study

VERSION = 2
FEWEST = 5
_SEED = re.compile("0|[1-9][0-9]{0,18}")  # as `str` writes a number, so that each has one name
Parts = dict[str, dict[str, Any]]  # part -> {"patients": int, "slices": int, "sha256": str or None}


def make_splits(
    study: Study, settings: SiteSettings, sites: Sequence[str], protocols: Sequence[str], seeds: Sequence[int],
    of: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The splits of a study as plain values: what `save_splits` writes. `of` tells a reader which images these are.

    Each is what a run with that protocol and seed uses, `max_images` and held-out sites included. Files are opened for
    their size only; that the pixels are those of the manifest is for `python -m preprocessing check` to say.

    Raises:
        DataError, SettingsError: as `fedfms.data.open_site`.
    """
    made: dict[str, dict[str, dict[str, Parts]]] = {p: {str(seed): {} for seed in seeds} for p in protocols}
    for site in sites:
        items: list[Item] = []
        for seed in seeds:
            if not items or study.data.dataset == PHANTOM:  # the phantom's images hang on the seed
                items, _ = find_items(replace(study, seed=seed), site, settings)
            for protocol in protocols:
                one = replace(study, seed=seed, data=replace(study.data, protocol=protocol))
                made[protocol][str(seed)][site] = _parts(one, site, items)
    return {**_head(study), "of": of, "splits": made}


def save_splits(content: dict[str, Any], path: Path) -> None:
    """Write `make_splits`' values as JSON.

    Raises:
        DataError: there is no such folder, no right to it or no room.
    """
    try:
        write_atomic(path, to_text(content))
    except OSError as error:
        raise DataError(f"cannot write the file of splits: {error.strerror}", do="check --out") from error


def to_text(content: dict[str, Any]) -> str:
    """`make_splits`' values as JSON, in lines."""
    return json.dumps(content, indent=1) + "\n"


def load_splits(path: Path) -> dict[str, Any]:
    """What `save_splits` wrote.

    Raises:
        DataError: it cannot be read, or is no file of splits of this version.
    """
    do = "name a file that `fedfms splits --out` wrote"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the file of splits {path} cannot be read ({error.strerror})", do=do) from None
    except ValueError:
        raise DataError("the file of splits is not JSON", where=path.name, do=do) from None
    nested = isinstance(content, dict) and _nested(content.get("splits"), 4)
    if not nested or content.get("version") != VERSION or not isinstance(content.get("of"), str):
        raise DataError(f"not a file of splits of version {VERSION}", do=do)
    if not set(content["splits"]) <= set(splits.PROTOCOLS):
        raise DataError("the file of splits names an unknown protocol", do=do)
    if not all(_SEED.fullmatch(seed) for by_seed in content["splits"].values() for seed in by_seed):
        raise DataError("a seed in the file of splits is no number", do=do)
    if not any(_walk(content)):
        raise DataError("the file of splits names no site", do=do)
    return content


@dataclass(frozen=True)
class Comparison:
    """Differences between a file's splits and those here, and what the comparison cannot tell; a line each."""

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_splits(
    study: Study, settings: SiteSettings, content: dict[str, Any], sites: Sequence[str] = (),
    protocols: Sequence[str] = (), seeds: Sequence[int] = (),
) -> Comparison:  # fmt: skip
    """Compare a file's splits with those here.

    Args:
        sites: those to compare; none: all that the file names, and the study's others are noted. A site that cannot
            be opened here is a difference, and so is a split that the file lacks.
        protocols: likewise.
        seeds: likewise.

    Raises:
        SettingsError: as `fedfms.data.open_site`.
    """
    here, found = _head(study), Comparison()
    if content["of"]:
        found.notes.append(f"the file is of: {content['of']!r}")
    found.differences.extend(
        f"{key}: {here[key]!r} here, {content.get(key)!r} in the file" for key in here if content.get(key) != here[key]
    )
    wanted = list(product(protocols or content["splits"], seeds or _seeds(content)))
    named = sorted({site for _, _, site, _ in _walk(content)})
    others = [site for site in (*study.sites, *study.held_out) if site not in named]
    if others and not sites:
        found.notes.append(f"the file does not name these sites of the study: {', '.join(others)}")
    for site in sites or named:
        if site not in named:
            found.differences.append(f"site {site}: the file does not name it")
            continue
        try:
            _compare_site(study, settings, content["splits"], site, wanted, found)
        except DataError as error:
            found.differences.append(error.line())
    return found


def _compare_site(
    study: Study, settings: SiteSettings, listed: dict[str, Any], site: str, wanted: Sequence[tuple[str, int]],
    found: Comparison,
) -> None:  # fmt: skip
    """Add to `found` what is to say of a site's splits of these protocols and seeds."""
    protocols, seeds = (list(dict.fromkeys(column)) for column in zip(*wanted, strict=True))
    made = make_splits(study, settings, [site], protocols, seeds)["splits"]
    counted: dict[str, list[str]] = defaultdict(list)  # where only numbers are compared -> seeds
    for protocol, seed in wanted:
        where = f"{protocol}, seed {seed}, site {site}"
        other = listed.get(protocol, {}).get(str(seed), {}).get(site)
        if other is None:
            found.differences.append(f"{where}: the file does not name it")
            continue
        own = made[protocol][str(seed)][site]
        found.differences.extend(f"{where}, {text}" for text in _differing(own, other))
        for part in own:
            if own[part] == other.get(part) and own[part]["sha256"] is None:
                counted[f"{protocol}, site {site}, {part}"].append(str(seed))
    found.notes.extend(f"{where}: only counts are compared, so few patients have no digest (seeds {', '.join(those)})"
                       for where, those in counted.items())  # fmt: skip


def _head(study: Study) -> dict[str, Any]:
    """What the splits of a study hang on, beside protocol, seed and images."""
    return {
        "version": VERSION,
        "rule": splits.RULE_VERSION,
        "study": study.name,
        "dataset": study.data.dataset,
        "max_images": study.data.max_images,
        "held_out": sorted(study.held_out),
    }


def _parts(study: Study, site: str, items: Sequence[Item]) -> Parts:
    parts, scored = split_items(study, site, items)
    return {part: _entry(parts[part]) for part in dict.fromkeys(("train", scored, "all")) if parts[part]}


def _entry(items: Sequence[Item]) -> dict[str, Any]:
    keys = sorted(item.key for item in items)
    blank = {blank_sha256(item.width_px, item.height_px, item.channels) for item in items}
    telling = [item for item in items if item.key not in blank]
    enough = min(len({item.key for item in telling}), len({item.patient for item in telling})) >= FEWEST
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest() if enough else None
    return {"patients": len({item.patient for item in items}), "slices": len(items), "sha256": digest}


def _walk(content: dict[str, Any]) -> Iterator[tuple[str, str, str, Parts]]:
    """(protocol, seed, site, parts) of a file's splits."""
    for protocol, by_seed in content["splits"].items():
        for seed, by_site in by_seed.items():
            for site, parts in by_site.items():
                yield protocol, seed, site, parts


def _seeds(content: dict[str, Any]) -> list[int]:
    return sorted({int(seed) for by_seed in content["splits"].values() for seed in by_seed})


def _nested(value: Any, depth: int) -> bool:
    """Whether a value is objects of objects, `depth` deep."""
    return isinstance(value, dict) and (depth == 0 or all(_nested(item, depth - 1) for item in value.values()))


def _differing(here: Parts, listed: Parts) -> Iterator[str]:
    """A text for each part that is not the same."""
    for part in sorted({*here, *listed}):
        own, other = here.get(part), listed.get(part)
        if own == other:
            continue
        if own is None or other is None:
            yield f"{part}: not in the file" if other is None else f"{part}: in the file only"
            continue
        counts = [f"{one.get('slices')} slices of {one.get('patients')} patients" for one in (own, other)]
        text = f"{counts[0]} here, {counts[1]} in the file"
        yield f"{part}: {'as many slices, but other images' if counts[0] == counts[1] else text}"
