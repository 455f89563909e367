"""Splits as data: a file that says who is in which part, so that another machine or a reader of a paper can see that
it has the same split, and no image or id leaves the house.

Of each site and part: the numbers of patients and slices, and a digest: the SHA-256 of the part's image hashes
(`pixel_sha256`, hex), sorted, joined by line breaks. The labels play no part, as they play none in the rule.

What a digest tells: nobody can go from it to pixels, which are unguessable; but whoever already has images, of a public
collection for instance, can test whether a part is just these. Of a set of images that is a test of the whole set, of
one image a test of that one. So a part with fewer than `FEWEST` different images, black ones (which anybody can guess)
not counted, has numbers and no digest. It is held nevertheless: "all" and the other part have theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
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

VERSION = 1
FEWEST = 5
Parts = dict[str, dict[str, Any]]  # part -> {"patients": int, "slices": int, "sha256": str or None}


def make_splits(
    study: Study, settings: SiteSettings, sites: Sequence[str], protocols: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """The splits of a study as plain values: what `save_splits` writes.

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
    return {**_head(study), "splits": made}


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
    except (OSError, ValueError) as error:
        raise DataError("the file of splits cannot be read as JSON", do=do) from error
    nested = isinstance(content, dict) and _nested(content.get("splits"), 4)
    if not nested or content.get("version") != VERSION:
        raise DataError(f"not a file of splits of version {VERSION}", do=do)
    if not set(content["splits"]) <= set(splits.PROTOCOLS):
        raise DataError("the file of splits names an unknown protocol", do=do)
    if not all(seed.isdecimal() for by_seed in content["splits"].values() for seed in by_seed):
        raise DataError("a seed in the file of splits is no number", do=do)
    return content


def compare_splits(
    study: Study, settings: SiteSettings, content: dict[str, Any], sites: Sequence[str] = ()
) -> list[str]:
    """Differences between a file's splits and those here, a line each.

    Args:
        sites: those to compare; none: all that the file names. A site that cannot be opened here is a difference.
    """
    here = _head(study)
    lines = [f"{key}: {here[key]!r} here, {content.get(key)!r} in the file" for key in here
             if content.get(key) != here[key]]  # fmt: skip
    protocols = list(content["splits"])
    seeds = sorted({int(seed) for by_seed in content["splits"].values() for seed in by_seed})
    named = sorted({site for _, _, site, _ in _walk(content)})
    for site in sites or named:
        if site not in named:
            lines.append(f"site {site}: the file does not name it")
            continue
        try:
            made = make_splits(study, settings, [site], protocols, seeds)["splits"]
        except DataError as error:
            lines.append(error.line())
            continue
        for protocol, seed, other, listed in _walk(content):
            if other == site:
                where = f"{protocol}, seed {seed}, site {site}"
                lines += [f"{where}, {text}" for text in _differing(made[protocol][seed][site], listed)]
    return lines


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
    telling = set(keys) - {blank_sha256(item.width_px, item.height_px, item.channels) for item in items}
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest() if len(telling) >= FEWEST else None
    return {"patients": len({item.patient for item in items}), "slices": len(items), "sha256": digest}


def _walk(content: dict[str, Any]) -> Iterator[tuple[str, str, str, Parts]]:
    """(protocol, seed, site, parts) of a file's splits."""
    for protocol, by_seed in content["splits"].items():
        for seed, by_site in by_seed.items():
            for site, parts in by_site.items():
                yield protocol, seed, site, parts


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
