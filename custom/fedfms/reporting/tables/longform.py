"""The long form of a table: a row for each number of each cell, as CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from fedfms.reporting.tables.cells import METRICS, Cell

COLUMNS = (
    "study", "dataset", "protocol", "method", "variant", "seed", "held_out", "model", "round", "site", "structure",
    "mode", "metric", "value", "sd", "images", "empty",
)  # fmt: skip


def long_form(cells: Iterable[Cell]) -> str:
    """CSV with a head line. Numbers have all their digits, so that reading them back gives the same float64; what is
    suppressed or was not counted is empty. `sd` is over the images of the site.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        writer.writerows(_rows(cell))
    return text.getvalue()


def _rows(cell: Cell) -> Iterator[tuple[object, ...]]:
    key, study = cell.key, cell.study
    first = (study.name, study.data.dataset, cell.protocol, key.method, key.variant, key.seed, key.held_out)
    for model, sites in cell.models.items():
        for site, entry in sites.items():
            for mode, by_structure in entry.scores.items():
                for structure, numbers in by_structure.items():
                    for metric in METRICS:
                        yield (
                            *first, model, cell.rounds[model], site, structure, mode, metric, numbers.of(metric),
                            numbers.sd(metric), numbers.images, numbers.empty,
                        )  # fmt: skip
