"""The numbers of a table: a line per method and variant, a column per site and structure, mean and s.d. over seeds.

Protocol `held-out`: a column's score is that of the model on the site held out from its training, so each column comes
from other runs. Protocol `personal`: a column's score is that of the site's personal model on its own test part.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedfms.reporting.scores import ALL_MODES, ScoreRow
from fedfms.reporting.tables.runs import Key, Run
from fedfms.study import Study
from fedfms.training.metrics import METRICS

Line = tuple[str, str]  # method and variant
Column = tuple[str, str]  # site and structure


@dataclass(frozen=True)
class Score:
    """Mean over seeds, sample s.d. (None for one seed), number of seeds; fewest and most images counted in a seed."""

    mean: float | None = None
    sd: float | None = None
    seeds: int = 0
    images: tuple[int, int] | None = None


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a model in a mode and metric."""

    model: str
    mode: str
    metric: str
    columns: tuple[Column, ...]
    scores: Mapping[Line, tuple[Score, ...]]  # by column
    averages: Mapping[Line, Score]  # over the columns for which any line has a score


@dataclass(frozen=True)
class Block:
    """The runs of one study in one protocol, finished and planned."""

    study: Study  # of the first run
    protocol: str
    sites: tuple[str, ...]
    lines: tuple[Line, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    planned: frozenset[Key]

    @property
    def title(self) -> str:
        """The study's title, or its name."""
        return self.study.title or self.study.name

    @cached_property
    def by_key(self) -> Mapping[Key, Run]:
        """The finished runs."""
        return {run.key: run for run in self.runs}

    @property
    def missing(self) -> int:
        """Number of planned runs that are not finished."""
        return len(self.planned - set(self.by_key))

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes in which any site reported scores; without any scores, those by image."""
        entries = [entry for run in self.runs for model in run.models.values() for entry in model.sites.values()]
        found = {mode for entry in entries if entry.scores for mode in entry.scores.by_mode()}
        return tuple(mode for mode in ALL_MODES if mode in found) or ALL_MODES[:2]

    def run(self, line: Line, seed: int, site: str) -> Run | None:
        """The finished run whose model is scored at `site` in this protocol."""
        method, variant = line
        return self.by_key.get(Key(method, seed, site if self.protocol == "held-out" else None, variant))

    def of_line(self, line: Line) -> list[Run]:
        """The line's finished runs."""
        return [run for run in self.runs if run.key.line == line]


def make_blocks(runs: Iterable[Run], planned: Sequence[Key] = (), order: Sequence[str] = ()) -> list[Block]:
    """The runs by study and protocol.

    Args:
        planned: all planned runs, held-out sites in the order of the columns. Default: every method and variant with
            every seed and site of any finished run.
        order: names of methods in the order of the lines; other methods follow.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.study.name, run.result.protocol), []).append(run)
    return [_block(group, planned, order) for _, group in sorted(groups.items())]


def _block(runs: Sequence[Run], planned: Sequence[Key], order: Sequence[str]) -> Block:
    protocol = runs[0].result.protocol
    matching = [key for key in planned if (key.held_out is None) == (protocol == "personal")]
    keys = {*matching, *(run.key for run in runs)}
    lines = sorted({key.line for key in keys}, key=lambda line: _line_order(line, order))
    seeds = sorted({key.seed for key in keys})
    lists = [run.study.sites for run in runs]
    columns: list[str | None] = [None]
    if protocol == "personal":
        sites = site_order({site for run in runs for site in run.models["final"].sites}, lists)
    else:
        first = [key.held_out for key in matching if key.held_out]
        sites = list(dict.fromkeys(first + site_order({key.held_out for key in keys if key.held_out}, lists)))
        columns = [*sites]
    every = {Key(method, seed, site, variant) for method, variant in lines for seed in seeds for site in columns}
    planned_keys = frozenset(keys if matching else every)
    return Block(runs[0].study, protocol, tuple(sites), tuple(lines), tuple(seeds), tuple(runs), planned_keys)


def _line_order(line: Line, order: Sequence[str]) -> tuple[Any, ...]:
    method, variant = line
    return order.index(method) if method in order else len(order), method, variant_order(variant)


def site_order(sites: Collection[str], lists: Iterable[Sequence[str]]) -> list[str]:
    """`sites` in the order of the study, of which each list holds a part: sorted by their mean place in the lists.

    If each list lacks one site, as a run's training sites lack the held-out one, the mean place of the i-th of n sites
    is i (n - 2) / (n - 1), which increases with i.
    """
    places: dict[str, list[int]] = {site: [] for site in sites}
    for names in lists:
        for place, site in enumerate(names):
            if site in places:
                places[site].append(place)
    return sorted(sites, key=lambda site: (statistics.fmean(places[site]) if places[site] else len(places), site))


def score_table(block: Block, model: str, mode: str, metric: str) -> ScoreTable:
    """The scores of a model in a mode and metric.

    The average is over the same columns for every line: all columns that have a score in any line. A line without one
    of these scores for a seed has no average for that seed.
    """
    columns = tuple((site, structure) for site in block.sites for structure in block.study.structure_names)
    rows = {line: [_rows_by_seed(block, line, column, model, mode) for column in columns] for line in block.lines}
    means = {
        line: [{seed: getattr(row, metric) for seed, row in of_seed.items()} for of_seed in of_line]
        for line, of_line in rows.items()
    }
    averaged = [
        index for index in range(len(columns))
        if any(value is not None for of_line in means.values() for value in of_line[index].values())
    ]  # fmt: skip
    scores = {
        line: tuple(
            over_seeds(of_seed.values(), [row.images for row in rows[line][index].values()])
            for index, of_seed in enumerate(of_line)
        )
        for line, of_line in means.items()
    }
    averages = {
        line: over_seeds(mean_of([of_line[index].get(seed) for index in averaged]) for seed in block.seeds)
        for line, of_line in means.items()
    }
    return ScoreTable(model, mode, metric, columns, scores, averages)


def score_tables(block: Block, model: str) -> list[ScoreTable]:
    """The tables of a model: every mode, then every metric."""
    return [score_table(block, model, mode, metric) for mode in block.modes for metric in METRICS]


def _rows_by_seed(block: Block, line: Line, column: Column, model: str, mode: str) -> dict[int, ScoreRow]:
    site, structure = column
    runs = {seed: block.run(line, seed, site) for seed in block.seeds}
    found = {seed: run.row(model, site, mode, structure) for seed, run in runs.items() if run}
    return {seed: row for seed, row in found.items() if row is not None}


def line_name(line: Line) -> str:
    """Method and variant, for people."""
    method, variant = line
    return f"{method} ({variant})" if variant else method


def over_seeds(values: Iterable[float | None], images: Iterable[int | None] = ()) -> Score:
    """Mean and sample s.d. of the known values."""
    known = [value for value in values if value is not None]
    counts = [count for count in images if count is not None]
    return Score(
        mean=statistics.fmean(known) if known else None,
        sd=statistics.stdev(known) if len(known) > 1 else None,
        seeds=len(known),
        images=(min(counts), max(counts)) if counts else None,
    )


def mean_of(values: Sequence[float | None], weights: Sequence[int] | None = None) -> float | None:
    """Mean, weighted if `weights` are given; None if any value is missing, since it would not be comparable."""
    known = [value for value in values if value is not None]
    if not known or len(known) != len(values):
        return None
    if weights is None:
        return statistics.fmean(known)
    return math.fsum(value * weight for value, weight in zip(known, weights, strict=True)) / sum(weights)


def parse_variant(text: str) -> tuple[str, int | float | str] | None:
    """Name and value of a variant; None if it has no value.

    "L=4" -> ("L", 4), "beta=1e-3" -> ("beta", 0.001), "act=gelu" -> ("act", "gelu"), "-PT" -> None.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    return (name, _value(value)) if name and value else None


def variant_order(text: str) -> tuple[str, float, str]:
    """Sort key of variants: the name, then the number, then the text; the unchanged method is first."""
    name, _, value = (part.strip() for part in text.partition("="))
    number = _value(value)
    return name, math.inf if isinstance(number, str) else float(number), text


def _value(text: str) -> int | float | str:
    """A finite number, or the text itself; `1_0` and `nan` are texts."""
    if "_" not in text and text.isascii():
        for kind in (int, float):
            try:
                number = kind(text)
                return number if math.isfinite(number) else text
            except (ValueError, OverflowError):
                continue
    return text
