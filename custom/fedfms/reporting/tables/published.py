"""The papers' own figures beside ours.

Figures and the mapping of names lie in `fedfms/reporting/published`. Nothing is invented: a site, structure or method
without a counterpart has no figure, and averages are compared only where they are over the same sites.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fedfms.reporting.tables.cells import METRICS
from fedfms.reporting.tables.summary import Block, Score, line_name, mean_of, over_seeds
from fedfms.study import Study

_AVERAGE = "average"
_AVERAGES = {"plain": "plain mean of the columns", "images": "mean over the sites, weighted by their images"}
_PLAN = "plan"  # nnU-Net's, which follows from the data


@dataclass(frozen=True)
class Pair:
    """Theirs and ours, both 0..1 or None."""

    theirs: float | None
    ours: Score

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        return None if self.theirs is None or self.ours.mean is None else self.ours.mean - self.theirs


@dataclass(frozen=True)
class Side:
    """A line beside the paper's: a pair for each column, then the average."""

    name: str
    their_name: str
    metric: str
    pairs: tuple[Pair, ...]
    average: Pair
    note: str


@dataclass(frozen=True)
class Comparison:
    """A table beside a paper's."""

    paper: str
    mode: str
    average: str  # what is said of the average's weights
    columns: tuple[str, ...]
    sides: tuple[Side, ...]
    notes: tuple[str, ...]


@cache
def papers() -> Mapping[str, Any]:
    """What `mapping.json` says of each paper; "figures": (data set, site, structure, method, metric) -> 0..1."""
    folder = files("fedfms.reporting").joinpath("published")
    content: dict[str, Any] = json.loads(folder.joinpath("mapping.json").read_text(encoding="utf-8"))
    for paper in content.values():
        lines = folder.joinpath(paper["file"]).read_text(encoding="utf-8").splitlines()
        paper["figures"] = {
            (row["dataset"], row[paper["site_column"]], row.get("structure", ""), row["method"], row["metric"]): (
                float(row[paper["value_column"]]) / paper["divide_by"]
            )
            for row in csv.DictReader(lines)
        }
    return content


def compare(block: Block, model: str = "final") -> list[Comparison]:
    """The block beside each paper of its protocol that has its data set, in the paper's mode."""
    found = []
    for paper in papers().values():
        data = paper["datasets"].get(block.dataset)
        if paper["protocol"] != block.protocol or data is None:
            continue
        if set(block.structures) == set(data["structures"]):
            comparison = _Beside(block, model, paper, data).comparison()
            if comparison.sides:
                found.append(comparison)
    return found


@dataclass(frozen=True)
class _Beside:
    """A block and a paper, of whose data sets `data` is the block's."""

    block: Block
    model: str
    paper: Mapping[str, Any]
    data: Mapping[str, Any]

    def comparison(self) -> Comparison:
        """Columns are our sites by the paper's structures; where it has none, ours are means over structures."""
        absent = [site for site in self.block.sites if site not in self.data["sites"]]
        notes = [self.data["note"]] if "note" in self.data else []
        if absent:
            notes.append(f"Without a counterpart in the paper: {', '.join(absent)}.")
        if not self.same_sites:
            notes.append("The average is not comparable: other sites.")
        return Comparison(
            paper=self.paper["paper"],
            mode=self.paper["mode"],
            average=_AVERAGES[self.paper["average"]],
            columns=tuple(f"{site} {structure}".strip() for site, structure in self.columns),
            sides=tuple(side for line in self.block.lines for side in self.sides(line)),
            notes=tuple(notes),
        )

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Our sites by their structures ("" where the paper has figures by site alone)."""
        theirs = dict.fromkeys(self.data["structures"].values())
        return [(site, structure) for site in self.block.sites for structure in theirs]

    @property
    def same_sites(self) -> bool:
        """Whether the block's sites are the paper's, all of them and no others."""
        theirs = {key[1] for key in self.paper["figures"] if key[0] == self.data["theirs"]} - {_AVERAGE}
        return sorted(self.data["sites"].get(site, "") for site in self.block.sites) == sorted(theirs)

    def sides(self, line: tuple[str, str]) -> Iterator[Side]:
        """The line beside the paper's, by metric; none where the paper has no such method or the line no cell."""
        cells = self.block.of_line(line)
        row = _their_row(cells[0].study, self.paper) if cells else None
        if row is None:
            return
        ours = cells[0].study.model.backbone
        note = "" if ours == row["backbone"] else f"{ours} in place of {row['backbone']}"
        for metric in METRICS:
            by_seed = {
                seed: [self.ours(line, seed, *column, metric) for column in self.columns] for seed in self.block.seeds
            }
            pairs = tuple(
                Pair(
                    self.figure(self.data["sites"].get(site, ""), structure, row["theirs"], metric),
                    over_seeds(values[i] for values in by_seed.values()),
                )
                for i, (site, structure) in enumerate(self.columns)
            )
            average = Pair(
                self.figure(_AVERAGE, "", row["theirs"], metric) if self.same_sites else None,
                over_seeds(self.average(line, seed, values) for seed, values in by_seed.items()),
            )
            yield Side(line_name(*line), row["theirs"], metric, pairs, average, note)

    def figure(self, site: str, structure: str, method: str, metric: str) -> float | None:
        """The paper's, by its own names."""
        value: float | None = self.paper["figures"].get((self.data["theirs"], site, structure, method, metric))
        return value

    def ours(self, line: tuple[str, str], seed: int, site: str, structure: str, metric: str) -> float | None:
        """Our score at a site, a mean over the structures that are `structure` in the paper."""
        cell = self.block.cell(line, seed, site)
        names = [name for name, theirs in self.data["structures"].items() if theirs == structure]
        told = [cell.numbers(self.model, site, self.paper["mode"], name) if cell else None for name in names]
        return mean_of([numbers.of(metric) if numbers else None for numbers in told])

    def average(self, line: tuple[str, str], seed: int, values: Sequence[float | None]) -> float | None:
        """Over the columns as the paper averages; None where a site does not tell the images by which it weighs."""
        if self.paper["average"] == "plain":
            return mean_of(values)
        counts = [self.images(line, seed, site) for site, _ in self.columns]
        known = [count for count in counts if count]
        return mean_of(values, known) if len(known) == len(values) else None

    def images(self, line: tuple[str, str], seed: int, site: str) -> int | None:
        """How many images of a site were scored."""
        cell = self.block.cell(line, seed, site)
        entry = cell.models.get(self.model, {}).get(site) if cell else None
        return entry.images if entry else None


def _their_row(study: Study, paper: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The paper's row for a method as it was run: pre-trained or not, on that backbone if it has a row for it.

    A method with options that the paper's row does not have is another method.
    """
    if set(study.method_options) - {_PLAN}:
        return None
    rows: list[Mapping[str, Any]] = [
        row
        for row in paper["methods"]
        if row["method"] == study.method and row["pretrained"] == (study.model.checkpoint is not None)
    ]
    same = [row for row in rows if row["backbone"] == study.model.backbone]
    return next(iter(same or rows), None)
