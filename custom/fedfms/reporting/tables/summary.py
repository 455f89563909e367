"""The model of a table: a line a method and variant, a column a site and structure, mean and s.d. over seeds.

Protocol `held-out`: a column's score is that of the model on the site that took no part in its training, so that each
column comes from a cell of its own. Protocol `personal`: that of each site's own model on the site's own test part.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedfms.reporting.tables.cells import METRICS, MODELS, MODES, Cell, Key, Numbers
from fedfms.reporting.tables.variants import variant_order


@dataclass(frozen=True)
class Column:
    """Where a score comes from; `structure` is a name also where there is one only."""

    site: str
    structure: str


@dataclass(frozen=True)
class Score:
    """Over seeds: mean, sample s.d. (None for one seed), and how many there were; images: fewest and most counted."""

    mean: float | None = None
    sd: float | None = None
    seeds: int = 0
    images: tuple[int, int] | None = None


@dataclass(frozen=True)
class Line:
    """A method in a variant: a score for each column, and their average."""

    method: str
    variant: str
    scores: tuple[Score, ...]
    average: Score
    done: int  # of the cells
    planned: int

    @property
    def name(self) -> str:
        """As people read it."""
        return line_name(self.method, self.variant)


@dataclass(frozen=True)
class Grid:
    """One table: of a model, a mode and a metric."""

    model: str
    mode: str
    metric: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    averaged: tuple[Column, ...]  # the columns of the average: those for which any line has a score


@dataclass(frozen=True)
class Block:
    """The cells of one study in one protocol, and what was to be run of them."""

    study: str
    title: str
    dataset: str
    protocol: str
    structures: tuple[str, ...]
    sites: tuple[str, ...]
    lines: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    planned: frozenset[Key]

    @cached_property
    def by_key(self) -> Mapping[Key, Cell]:
        """The finished cells."""
        return {cell.key: cell for cell in self.cells}

    @property
    def missing(self) -> int:
        """How many cells were to be run and are not finished."""
        return len(self.planned - set(self.by_key))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that any cell has."""
        return tuple(model for model in MODELS if any(model in cell.models for cell in self.cells))

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes in which a site told scores."""
        entries = [entry for cell in self.cells for sites in cell.models.values() for entry in sites.values()]
        told = {mode for entry in entries for mode in entry.scores}
        return tuple(mode for mode in MODES if mode in told) or MODES[:2]

    def cell(self, line: tuple[str, str], seed: int, site: str) -> Cell | None:
        """The finished cell whose model is scored at `site` in this protocol."""
        method, variant = line
        return self.by_key.get(Key(method, seed, site if self.protocol == "held-out" else None, variant))

    def of_line(self, line: tuple[str, str]) -> list[Cell]:
        """Its finished cells."""
        return [cell for cell in self.cells if cell.key.line == line]


def make_blocks(cells: Iterable[Cell], planned: Sequence[Key] = (), order: Sequence[str] = ()) -> list[Block]:
    """The cells by study and protocol.

    Args:
        planned: all cells that were to be run, the held-out sites in the order of the columns. Without it, every
            method and variant with every seed and site of which any cell is finished.
        order: names of methods, for the order of the lines; others come after them.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.study.name, cell.protocol), []).append(cell)
    return [_block(group, planned, order) for _, group in sorted(groups.items())]


def _block(cells: Sequence[Cell], planned: Sequence[Key], order: Sequence[str]) -> Block:
    study, protocol = cells[0].study, cells[0].protocol
    fitting = [key for key in planned if (key.held_out is None) == (protocol == "personal")]
    keys = {*fitting, *(cell.key for cell in cells)}
    lines = sorted({key.line for key in keys}, key=lambda line: _line_order(line, order))
    seeds = sorted({key.seed for key in keys})
    if protocol == "held-out":
        found = site_order({key.held_out for key in keys if key.held_out}, [cell.study.sites for cell in cells])
        sites = list(dict.fromkeys([key.held_out for key in fitting if key.held_out] + found))
        where: list[str | None] = list(sites)
    else:
        known = {site for cell in cells for site in cell.models["final"]}
        sites = site_order(known, [cell.study.sites for cell in cells])
        where = [None]
    every = {Key(method, seed, site, variant) for method, variant in lines for seed in seeds for site in where}
    return Block(
        study=study.name, title=study.title or study.name, dataset=study.data.dataset, protocol=protocol,
        structures=study.structure_names, sites=tuple(sites), lines=tuple(lines), seeds=tuple(seeds),
        cells=tuple(cells), planned=frozenset(keys if fitting else every),
    )  # fmt: skip


def _line_order(line: tuple[str, str], order: Sequence[str]) -> tuple[Any, ...]:
    method, variant = line
    return order.index(method) if method in order else len(order), method, variant_order(variant)


def site_order(sites: Collection[str], lists: Iterable[Sequence[str]]) -> list[str]:
    """`sites` in the order of the study, of which each list holds a part: by their mean place in the lists.

    Where each list lacks one site, as the training sites of a cell lack the held-out one, the mean place of the i-th
    of n sites is i (n - 2) / (n - 1), which rises with i.
    """
    places: dict[str, list[int]] = {site: [] for site in sites}
    for names in lists:
        for place, site in enumerate(names):
            if site in places:
                places[site].append(place)
    return sorted(sites, key=lambda site: (statistics.fmean(places[site]) if places[site] else len(places), site))


def make_grid(block: Block, model: str, mode: str, metric: str) -> Grid:
    """The table of a model, mode and metric.

    The average is over the same columns for every line: all that have a score in any. A line that lacks one of them
    for a seed has no average for that seed.
    """
    columns = tuple(Column(site, structure) for site in block.sites for structure in block.structures)
    found = {line: [_found(block, line, column, model, mode) for column in columns] for line in block.lines}
    scored = [
        any(numbers.of(metric) is not None for row in found.values() for numbers in row[i].values())
        for i in range(len(columns))
    ]
    lines = []
    for line in block.lines:
        values = [{seed: n.of(metric) for seed, n in by_seed.items()} for by_seed in found[line]]
        counted = [by_seed for by_seed, counts in zip(values, scored, strict=True) if counts]
        lines.append(
            Line(
                *line,
                scores=tuple(
                    over_seeds(v.values(), [n.images for n in f.values()])
                    for v, f in zip(values, found[line], strict=True)
                ),
                average=over_seeds(mean_of([column.get(seed) for column in counted]) for seed in block.seeds),
                done=len(block.of_line(line)),
                planned=sum(key.line == line for key in block.planned),
            )
        )
    averaged = tuple(column for column, counts in zip(columns, scored, strict=True) if counts)
    return Grid(model, mode, metric, columns, tuple(lines), averaged)


def make_grids(block: Block, model: str) -> list[Grid]:
    """The tables of a model: every mode, then every metric."""
    return [make_grid(block, model, mode, metric) for mode in block.modes for metric in METRICS]


def _found(block: Block, line: tuple[str, str], column: Column, model: str, mode: str) -> dict[int, Numbers]:
    """By seed, what is told of a column."""
    told = {}
    for seed in block.seeds:
        cell = block.cell(line, seed, column.site)
        numbers = cell.numbers(model, column.site, mode, column.structure) if cell else None
        if numbers is not None:
            told[seed] = numbers
    return told


def line_name(method: str, variant: str) -> str:
    """A method in a variant, as people read it."""
    return f"{method} ({variant})" if variant else method


def over_seeds(values: Iterable[float | None], images: Iterable[int | None] = ()) -> Score:
    """Mean and sample s.d. of the values that are known."""
    known = [value for value in values if value is not None]
    counts = [count for count in images if count is not None]
    return Score(
        mean=statistics.fmean(known) if known else None,
        sd=statistics.stdev(known) if len(known) > 1 else None,
        seeds=len(known),
        images=(min(counts), max(counts)) if counts else None,
    )


def mean_of(values: Sequence[float | None], weights: Sequence[int] | None = None) -> float | None:
    """Mean, weighted if `weights` are given; None where a value is missing, for it would be of other things then."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known, weights) if known and len(known) == len(values) else None
