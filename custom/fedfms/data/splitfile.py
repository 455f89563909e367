"""A file of splits: lets another machine, or a reader of a paper, verify its splits without any image or id.

It holds for each site and part the numbers of patients and slices, and a digest: the SHA-256 of the part's image
hashes (`pixel_sha256`, hex), sorted and joined by line breaks. Labels play no part, as in the split rule.

What a digest reveals: pixels cannot be derived from it, but anyone who has the images, of a public collection for
instance, can test whether a part consists of exactly these. For a part of one image or one patient that would be a
membership test. So a part has a digest only with `MIN_CASES` different images of `MIN_CASES` patients; black images,
which anyone can guess, do not count. Other parts are compared by their numbers alone: that they have the same images
is known only where both "all" and the one other part have a digest. A comparison notes this.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedfms.data import splits
from fedfms.data.manifest import blank_sha256
from fedfms.data.site import find_items, split_items
from fedfms.data.source import Item
from fedfms.data.splits import Protocol
from fedfms.errors import DataError
from fedfms.files import write_atomic
from fedfms.schema import STRICT, parse_bytes, to_plain
from fedfms.settings import SiteSettings
from fedfms.study import PHANTOM, Study

VERSION: Literal[2] = 2
MIN_CASES = 5

Seed = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,18})$")]  # as `str` writes a number, so each has one name
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Part:
    """One part of a site's split."""

    patients: Count
    slices: Count
    sha256: str | None
    """Digest of the images; None: too few patients."""


Parts = Mapping[str, Part]
Splits = Mapping[Protocol, Mapping[Seed, Mapping[str, Parts]]]  # ... site -> part


@dataclass(frozen=True, config=STRICT)
class SplitFile:
    """Splits of a study, and what they depend on in addition to the images."""

    version: Literal[2]
    rule: int
    study: str
    dataset: str
    max_images: int | None
    held_out: tuple[str, ...]
    of: str
    """Which images these are, for readers."""
    splits: Splits

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({int(seed) for by_seed in self.splits.values() for seed in by_seed})

    @property
    def sites(self) -> list[str]:
        """All sites, by name."""
        return sorted({site for by_seed in self.splits.values() for sites in by_seed.values() for site in sites})

    def find(self, protocol: Protocol, seed: int, site: str) -> Parts | None:
        """The split of a site, if the file has it."""
        return self.splits.get(protocol, {}).get(str(seed), {}).get(site)


def make_splits(
    study: Study, settings: SiteSettings, sites: Sequence[str], protocols: Sequence[Protocol], seeds: Sequence[int],
    of: str = "",
) -> SplitFile:  # fmt: skip
    """The splits that a run with each protocol and seed uses, including `max_images` and held-out sites.

    Files are opened for their size only; `fedfms prepare check` compares pixels with the manifest.

    Raises:
        DataError, SettingsError: as `fedfms.data.open_site`.
    """
    made: dict[Protocol, dict[str, dict[str, Parts]]] = {p: {str(seed): {} for seed in seeds} for p in protocols}
    for site in sites:
        items: list[Item] = []
        for seed in seeds:
            if not items or study.data.dataset == PHANTOM:  # the phantom's images depend on the seed
                items, _ = find_items(replace(study, seed=seed), site, settings)
            for protocol in protocols:
                run = replace(study, seed=seed, data=replace(study.data, protocol=protocol))
                made[protocol][str(seed)][site] = _parts(run, site, items)
    return SplitFile(
        version=VERSION, rule=splits.RULE_VERSION, study=study.name, dataset=study.data.dataset,
        max_images=study.data.max_images, held_out=tuple(sorted(study.held_out)), of=of, splits=made,
    )  # fmt: skip


def save_splits(content: SplitFile, path: Path) -> None:
    """Write splits as JSON.

    Raises:
        DataError: there is no such folder, no permission or no space.
    """
    try:
        write_atomic(path, to_text(content))
    except OSError as error:
        raise DataError(f"cannot write the file of splits: {error.strerror}", do="check --out") from error


def to_text(content: SplitFile) -> str:
    """Splits as indented JSON."""
    return json.dumps(to_plain(content), indent=1) + "\n"


def load_splits(path: Path) -> SplitFile:
    """What `save_splits` wrote.

    Raises:
        DataError: it cannot be read, or is not a file of splits of this version.
    """
    do = "name a file that `fedfms splits --out` wrote"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"the file of splits {path} cannot be read ({error.strerror})", do=do) from None
    where = f"file of splits {path.name}"
    content = parse_bytes(SplitFile, text, DataError, where=where, do=do, machine_written=True)
    if not content.sites:
        raise DataError("it names no site", where=where, do=do)
    return content


@dataclass(frozen=True)
class Comparison:
    """Differences between a file's splits and the local ones, and what the comparison cannot verify; a line each."""

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_splits(
    study: Study, settings: SiteSettings, content: SplitFile, sites: Sequence[str] = (),
    protocols: Sequence[Protocol] = (), seeds: Sequence[int] = (),
) -> Comparison:  # fmt: skip
    """Compare a file's splits with the local ones.

    Args:
        sites: the sites to compare; empty: all that the file names, with a note of the study's other sites. A site
            that cannot be opened here is a difference, and so is a split that the file lacks.
        protocols: likewise.
        seeds: likewise.

    Raises:
        SettingsError: as `fedfms.data.open_site`.
    """
    found = Comparison()
    if content.of:
        found.notes.append(f"the file is of: {content.of!r}")
    here, listed = to_plain(make_splits(study, settings, (), (), ())), to_plain(content)
    found.differences.extend(
        f"{key}: {here[key]!r} here, {listed[key]!r} in the file"
        for key in ("rule", "study", "dataset", "max_images", "held_out")
        if here[key] != listed[key]
    )
    wanted = list(product(protocols or content.splits, seeds or content.seeds))
    others = [site for site in (*study.sites, *study.held_out) if site not in content.sites]
    if others and not sites:
        found.notes.append(f"the file does not name these sites of the study: {', '.join(others)}")
    for site in sites or content.sites:
        if site not in content.sites:
            found.differences.append(f"site {site}: the file does not name it")
            continue
        try:
            _compare_site(study, settings, content, site, wanted, found)
        except DataError as error:
            found.differences.append(error.line())
    return found


def _compare_site(
    study: Study, settings: SiteSettings, content: SplitFile, site: str, wanted: Sequence[tuple[Protocol, int]],
    found: Comparison,
) -> None:  # fmt: skip
    """Add to `found` the differences and notes of a site's splits of these protocols and seeds."""
    protocols, seeds = (dict.fromkeys(column) for column in zip(*wanted, strict=True))
    made = make_splits(study, settings, [site], list(protocols), list(seeds))
    counted: dict[str, list[str]] = defaultdict(list)  # where only numbers are compared -> seeds
    for protocol, seed in wanted:
        where = f"{protocol}, seed {seed}, site {site}"
        own, other = made.find(protocol, seed, site), content.find(protocol, seed, site)
        if own is None or other is None:
            found.differences.append(f"{where}: the file does not name it")
            continue
        found.differences.extend(f"{where}, {text}" for text in _differences(own, other))
        for part in own:
            if own[part] == other.get(part) and own[part].sha256 is None:
                counted[f"{protocol}, site {site}, {part}"].append(str(seed))
    found.notes.extend(
        f"{where}: too few patients for a digest, only counts are compared (seeds {', '.join(of)})"
        for where, of in counted.items()
    )


def _parts(study: Study, site: str, items: Sequence[Item]) -> Parts:
    parts, scored = split_items(study, site, items)
    return {part: _part(parts[part]) for part in dict.fromkeys(("train", scored, "all")) if parts[part]}


def _part(items: Sequence[Item]) -> Part:
    keys = sorted(item.key for item in items)
    blank = {blank_sha256(item.width_px, item.height_px, item.channels) for item in items}
    visible = [item for item in items if item.key not in blank]
    enough = min(len({item.key for item in visible}), len({item.patient for item in visible})) >= MIN_CASES
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest() if enough else None
    return Part(patients=len({item.patient for item in items}), slices=len(items), sha256=digest)


def _differences(here: Parts, listed: Parts) -> Iterator[str]:
    """A text for each part that differs."""
    for part in sorted({*here, *listed}):
        own, other = here.get(part), listed.get(part)
        if own == other:
            continue
        if own is None or other is None:
            yield f"{part}: not in the file" if other is None else f"{part}: in the file only"
            continue
        counts = [f"{one.slices} slices of {one.patients} patients" for one in (own, other)]
        text = f"{counts[0]} here, {counts[1]} in the file"
        yield f"{part}: {'the same number of slices, but other images' if counts[0] == counts[1] else text}"
