"""Compare a table with the figures that the papers published.

Figures and the mapping of names are in `fedfms/reporting/published`. A site, structure or method without a counterpart
has no figure. Averages are compared only if they are over the same sites.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from fedfms.reporting.tables.runs import Protocol, TableError
from fedfms.reporting.tables.summary import Block, Line, Score, line_name, mean_of, over_seeds
from fedfms.schema import STRICT, parse_bytes
from fedfms.study import Study
from fedfms.training.metrics import METRICS

_AVERAGE = "average"
_AVERAGES = {"plain": "plain mean of the columns", "images": "mean over the sites, weighted by their images"}
_PLAN = "plan"  # of nnU-Net; it follows from the data, and is no option of the method
_FOLDER = files("fedfms.reporting") / "published"


@dataclass(frozen=True, config=STRICT)
class PaperMethod:
    """A row of a paper's table."""

    method: str
    pretrained: bool
    theirs: str
    """Name in the paper."""
    backbone: str


@dataclass(frozen=True, config=STRICT)
class PaperDataset:
    """A data set of a paper; the mappings are from our names to the paper's."""

    theirs: str
    sites: Mapping[str, str]
    structures: Mapping[str, str]
    """"" where the paper has figures by site only."""
    note: str = ""
    known_by: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Numbers of images that identify the paper's sites."""


@dataclass(frozen=True, config=STRICT)
class Paper:
    """A paper's table: an entry of `mapping.json`."""

    paper: str
    file: str
    site_column: str
    value_column: str
    divide_by: int
    protocol: Protocol
    mode: Literal["standard", "fedfms"]
    average: Literal["plain", "images"]
    methods: tuple[PaperMethod, ...]
    datasets: Mapping[str, PaperDataset]

    @cached_property
    def figures(self) -> Mapping[tuple[str, str, str, str, str], float]:
        """(data set, site, structure, method, metric), all in the paper's names -> 0..1."""
        return {
            (row["dataset"], row[self.site_column], row.get("structure", ""), row["method"], row["metric"]): (
                float(row[self.value_column]) / self.divide_by
            )
            for row in csv.DictReader((_FOLDER / self.file).read_text(encoding="utf-8").splitlines())
        }

    def row_of(self, study: Study) -> PaperMethod | None:
        """The paper's row for the study's method, pre-trained or not, preferably with the study's backbone.

        A method with options that differ from the paper's is another method.
        """
        if set(study.method_options) - {_PLAN}:
            return None
        pretrained = study.model.checkpoint is not None
        rows = [row for row in self.methods if (row.method, row.pretrained) == (study.method, pretrained)]
        same = [row for row in rows if row.backbone == study.model.backbone]
        return next(iter(same or rows), None)


@cache
def papers() -> Mapping[str, Paper]:
    """The papers in `mapping.json`."""
    kind: Any = dict[str, Paper]
    found: dict[str, Paper] = parse_bytes(kind, (_FOLDER / "mapping.json").read_bytes(), TableError)
    return found


@dataclasses.dataclass(frozen=True)
class Pair:
    """The paper's figure and ours, both 0..1 or None."""

    theirs: float | None
    ours: Score

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        return None if self.theirs is None or self.ours.mean is None else self.ours.mean - self.theirs


@dataclasses.dataclass(frozen=True)
class Side:
    """A line of our table and of the paper's: a pair for each column, then the average."""

    name: str
    their_name: str
    metric: str
    pairs: tuple[Pair, ...]
    average: Pair
    note: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Our table and a paper's."""

    paper: str
    mode: str
    average: str  # description of the average's weights
    columns: tuple[str, ...]
    sides: tuple[Side, ...]
    notes: tuple[str, ...]


def compare(block: Block, model: str = "final") -> list[Comparison]:
    """Compare the block with each paper that has its data set in its protocol, in the paper's mode."""
    found = []
    for paper in papers().values():
        data = paper.datasets.get(block.study.data.dataset)
        same_structures = data is not None and set(block.study.structure_names) == set(data.structures)
        if data is not None and same_structures and paper.protocol == block.protocol:
            comparison = _Comparer(block, model, paper, data).comparison()
            found += [comparison] if comparison.sides else []
    return found


@dataclasses.dataclass(frozen=True)
class _Comparer:
    """A block and a paper; `data` is the paper's entry of the block's data set."""

    block: Block
    model: str
    paper: Paper
    data: PaperDataset

    def comparison(self) -> Comparison:
        """Columns are our sites by the paper's structures; if it has none, our scores are means over structures."""
        absent = [site for site in self.block.sites if site not in self.data.sites]
        notes = (
            self.data.note,
            f"Without a counterpart in the paper: {', '.join(absent)}." if absent else "",
            "" if self.same_sites else "The average is not comparable: other sites.",
        )
        sides = (side for line in self.block.lines for side in self.sides(line))
        columns = tuple(f"{site} {structure}".strip() for site, structure in self.columns)
        average = _AVERAGES[self.paper.average]
        return Comparison(
            self.paper.paper, self.paper.mode, average, columns, tuple(sides), tuple(filter(None, notes))
        )  # fmt: skip

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Our sites by the paper's structures."""
        theirs = dict.fromkeys(self.data.structures.values())
        return [(site, structure) for site in self.block.sites for structure in theirs]

    @property
    def same_sites(self) -> bool:
        """Whether the block's sites are exactly the paper's."""
        theirs = {key[1] for key in self.paper.figures if key[0] == self.data.theirs} - {_AVERAGE}
        return sorted(self.data.sites.get(site, "") for site in self.block.sites) == sorted(theirs)

    def sides(self, line: Line) -> list[Side]:
        """The line and the paper's row, by metric; empty if the line has no run or the paper no such method."""
        runs = self.block.of_line(line)
        row = self.paper.row_of(runs[0].study) if runs else None
        if row is None:
            return []
        backbone = runs[0].study.model.backbone
        note = "" if backbone == row.backbone else f"{backbone} in place of {row.backbone}"
        found = []
        for metric in METRICS:
            seeds = self.block.seeds
            ours = [[self.ours(line, seed, *column, metric) for column in self.columns] for seed in seeds]
            theirs = [
                self.figure(self.data.sites.get(site, ""), structure, row.theirs, metric)
                for site, structure in self.columns
            ]
            pairs = tuple(Pair(*pair) for pair in zip(theirs, map(over_seeds, zip(*ours, strict=True)), strict=True))
            average = Pair(
                self.figure(_AVERAGE, "", row.theirs, metric) if self.same_sites else None,
                over_seeds(self.average(line, seed, values) for seed, values in zip(seeds, ours, strict=True)),
            )
            found.append(Side(line_name(line), row.theirs, metric, pairs, average, note))
        return found

    def figure(self, site: str, structure: str, method: str, metric: str) -> float | None:
        """The paper's figure, by its own names."""
        return self.paper.figures.get((self.data.theirs, site, structure, method, metric))

    def ours(self, line: Line, seed: int, site: str, structure: str, metric: str) -> float | None:
        """Our score at a site, mean over our structures that the paper calls `structure`."""
        run = self.block.run(line, seed, site)
        names = [name for name, theirs in self.data.structures.items() if theirs == structure]
        rows = [run.row(self.model, site, self.paper.mode, name) if run else None for name in names]
        return mean_of([getattr(row, metric, None) for row in rows])

    def average(self, line: Line, seed: int, values: Sequence[float | None]) -> float | None:
        """Average over the columns as in the paper; None if a site's number of images is needed and unknown."""
        if self.paper.average == "plain":
            return mean_of(values)
        runs = [(self.block.run(line, seed, site), site) for site, _ in self.columns]
        entries = [run.at(self.model, site) if run else None for run, site in runs]
        counts = [entry.images for entry in entries if entry and entry.images]
        return mean_of(values, counts) if len(counts) == len(values) else None
