"""What is written in a table's fields: the same sheets for a terminal, Markdown, LaTeX and the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedfms.reporting.scores import clean_number
from fedfms.reporting.tables.cells import METRICS, Cell
from fedfms.reporting.tables.published import Comparison, Pair
from fedfms.reporting.tables.significance import POOLED, PairedTest
from fedfms.reporting.tables.summary import Block, Column, Grid, Line, Score, line_name
from fedfms.training.metrics import THRESHOLDS

NONE = "-"
FEWER = "*"
BEST, SECOND = "best", "second"
METRIC_NAMES = {"dice": "Dice", "iou": "IoU"}
MODE_NAMES = {
    "standard": "in standard mode: sigmoid > 0.5, mean over images, an image empty in truth and prediction left out",
    "fedfms": (
        f"in fedfms mode, as the paper's code: raw logit > {', '.join(map(str, THRESHOLDS))}, smoothed ratios averaged "
        "over these thresholds, mean over images"
    ),
    "volume": "in volume mode: sigmoid > 0.5, of a whole case over all its slices, mean over cases",
}
PROTOCOL_NAMES = {
    "held-out": "each column: the model that was trained on the other sites, on all images of this one",
    "personal": "each column: the site's own model on its own test part",
}


@dataclass(frozen=True)
class Field:
    """A field of a sheet: what is read in it, what it is sorted by, and whether it is the best of its column."""

    text: str
    value: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table as it is read. The first `names` fields of a row are names; `foot`: rows that stay below the others."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]
    foot: tuple[tuple[Field, ...], ...] = ()
    names: int = 1
    sorts: bool = True  # by any column; not where rows belong together


def score_sheet(block: Block, grid: Grid) -> Sheet:
    """The table of a mode and metric: a line a method, a column a site and structure, the average, seeds and cells."""
    marks = [_marks([line.scores[i] for line in grid.lines]) for i in range(len(grid.columns))]
    marks.append(_marks([line.average for line in grid.lines]))
    rows = tuple(
        (
            Field(line.name),
            *(
                _score(score, column[n], of=len(block.seeds))
                for score, column in zip((*line.scores, line.average), marks, strict=True)
            ),
            Field(str(_seeds(line)), _seeds(line)),
            Field(f"{line.done} of {line.planned}", line.done),
        )
        for n, line in enumerate(grid.lines)
    )
    counts = [_count_range(line.scores[i].images for line in grid.lines) for i in range(len(grid.columns))]
    foot = (Field("images"), *map(Field, counts), Field(""), Field(""), Field(""))
    return Sheet(
        title=f"{METRIC_NAMES[grid.metric]}, {grid.mode} mode, {grid.model} model",
        caption=caption(block, grid),
        head=("method", *(column_name(block, column) for column in grid.columns), "average", "seeds", "cells"),
        rows=rows,
        foot=(foot,),
    )


def column_name(block: Block, column: Column) -> str:
    """The site, and the structure where there are several."""
    return column.site if len(block.structures) == 1 else f"{column.site}, {column.structure}"


def caption(block: Block, grid: Grid) -> str:
    """What a table of scores holds, in full."""
    seeds = ", ".join(map(str, block.seeds))
    spread = "mean and sample s.d. over" if len(block.seeds) > 1 else "of"
    rounds = sorted({cell.rounds[grid.model] for cell in block.cells if grid.model in cell.rounds})
    after = f"{_span(rounds)} rounds" if rounds else "no rounds"
    counts = {score.seeds for line in grid.lines for score in (*line.scores, line.average)} - {0, len(block.seeds)}
    fewer = f", {FEWER} over fewer of them" if counts else ""
    parts = [
        f"{METRIC_NAMES[grid.metric]} of the {grid.model} model ({after}) on {block.title}",
        f"protocol {block.protocol}, {PROTOCOL_NAMES[block.protocol]}",
        MODE_NAMES[grid.mode],
        f"{spread} {many(len(block.seeds), 'seed')} ({seeds}){fewer}",
        "best of a column bold, second underlined",
    ]
    left = [column_name(block, column) for column in grid.columns if column not in grid.averaged]
    if left and grid.averaged:
        parts.append(f"the average is without {'; '.join(left)}, of which there is no score")
    parts += [told] if (told := not_finished(block)) else []
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def not_finished(block: Block) -> str:
    """How many cells are missing; empty if none is."""
    return f"not finished: {block.missing} of {many(len(block.planned), 'cell')}" if block.missing else ""


def comparison_sheets(block: Block, comparison: Comparison) -> list[Sheet]:
    """A sheet a metric: of each method the paper's figures, ours, and the differences."""
    sheets = []
    for metric in METRICS:
        rows: list[tuple[Field, ...]] = []
        for side in (side for side in comparison.sides if side.metric == metric):
            pairs = (*side.pairs, side.average)
            note = f" ({side.note})" if side.note else ""
            rows.append((Field(side.name), Field(f"paper, {side.their_name}"), *(_number(p.theirs) for p in pairs)))
            rows.append((Field(side.name), Field(f"ours{note}"), *(_score(pair.ours) for pair in pairs)))
            rows.append((Field(side.name), Field("difference"), *map(_difference, pairs)))
        sentences = [
            f"{METRIC_NAMES[metric]} beside {comparison.paper}, final model, {comparison.mode} mode",
            f"Average: {comparison.average}",
        ]
        text = ". ".join(sentences) + "." + "".join(f" {note}" for note in comparison.notes)
        head = ("method", "of", *comparison.columns, "average")
        title = f"{METRIC_NAMES[metric]} beside {comparison.paper}"
        sheets.append(Sheet(title, text, head, tuple(rows), names=2, sorts=False))
    return sheets


def significance_sheets(tests: Sequence[PairedTest]) -> list[Sheet]:
    """The paired tests: over all sites together, then site by site."""
    legend = (
        "Wilcoxon's signed-rank test of an image's Dice, federated against centralised, two-sided; an image without a "
        "difference is left out, ties share their rank; exact to 50 differences without ties, else approximate. Holm: "
        "corrected for the methods that are compared. A p above 0.05 says that no difference was found, not that there "
        "is none; slices of one case are not independent, which makes p too small."
    )
    sheets = []
    for title, chosen in (
        ("Federated against centralised, all sites", [test for test in tests if test.site == POOLED]),
        ("Federated against centralised, by site", [test for test in tests if test.site != POOLED and test.images]),
    ):
        head = ("method", "against", "mode", "site", "images", "differ", "mean difference", "p", "p (Holm)", "how")
        rows = tuple(_test_row(test) for test in chosen)
        if rows:
            sheets.append(Sheet(title, legend, head, rows, names=4))
    return sheets


def _test_row(test: PairedTest) -> tuple[Field, ...]:
    return (
        Field(line_name(*test.line)),
        Field(line_name(*test.twin)),
        Field(test.mode),
        Field(test.site or "all"),
        Field(str(test.images), test.images),
        Field(str(test.differing), test.differing),
        _signed(test.difference),
        _p_value(test.p),
        _p_value(test.holm),
        Field(test.how or f"no test: {test.reason}"),
    )


def cost_sheet(block: Block) -> Sheet:
    """Means over a line's cells: traffic, and seconds of this machine."""
    rows = []
    for line in block.lines:
        cells = block.of_line(line)
        rounds = [_mean(cell.seconds.get("rounds")) for cell in cells]
        rows.append(
            (
                Field(line_name(*line)),
                *(_amount(_mean([cell.traffic.get(key) for cell in cells])) for key in ("up_mb", "down_mb")),
                _amount(_mean(rounds)),
                _amount(_mean([_total(cell) for cell in cells])),
                Field(str(len(cells)), len(cells)),
            )
        )
    return Sheet(
        title="Cost",
        caption=(
            "MB (1e6 bytes) a site and round, up to the server and down to the site; seconds on the machine below; "
            "means over the finished cells. A centralised method sends nothing."
        ),
        head=("method", "MB up", "MB down", "s a round", "s a cell", "cells"),
        rows=tuple(rows),
    )


def _total(cell: Cell) -> float | None:
    """Seconds of the rounds and of the last evaluation."""
    rounds = [value for value in _list(cell.seconds.get("rounds")) if clean_number(value) is not None]
    evaluate = clean_number(cell.seconds.get("evaluate"))
    return sum(rounds) + (evaluate or 0) if rounds else None


def _marks(scores: Sequence[Score]) -> list[str]:
    """Best and second of a column, by what is read: equal texts get equal marks. Of a single line nothing is best."""
    shown = [None if score.mean is None else f"{score.mean:.3f}" for score in scores]
    ranked = sorted({text for text in shown if text is not None}, reverse=True)
    if sum(text is not None for text in shown) < 2:
        return [""] * len(shown)
    marks = dict(zip(ranked, (BEST, SECOND), strict=False))
    return ["" if text is None else marks.get(text, "") for text in shown]


def _score(score: Score, mark: str = "", *, of: int = 0) -> Field:
    if score.mean is None:
        return Field(NONE)
    spread = "" if score.sd is None else f" ± {score.sd:.3f}"
    return Field(f"{score.mean:.3f}{spread}{FEWER if score.seeds < of else ''}", score.mean, mark)


def _number(value: float | None) -> Field:
    return Field(NONE if value is None else f"{value:.3f}", value)


def _difference(pair: Pair) -> Field:
    return _signed(pair.difference)


def _signed(value: float | None) -> Field:
    return Field(NONE if value is None else f"{value:+.3f}", value)


def _p_value(value: float | None) -> Field:
    if value is None:
        return Field(NONE)
    return Field("< 0.001" if value < 0.001 else f"{value:.3f}", value)


def _amount(value: float | None) -> Field:
    return Field(NONE if value is None else f"{value:,.2f}", value)


def _mean(values: Any) -> float | None:
    known = [float(value) for value in _list(values) if clean_number(value) is not None]
    return statistics.fmean(known) if known else None


def _list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else []


def _seeds(line: Line) -> int:
    return max((score.seeds for score in line.scores), default=0)


def _count_range(ranges: Iterable[tuple[int, int] | None]) -> str:
    known = [count for counts in ranges if counts for count in counts]
    return _span(sorted({*known})) if known else NONE


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]}-{numbers[-1]}"


def many(count: int, what: str) -> str:
    """A count and what is counted."""
    return f"{count} {what}{'' if count == 1 else 's'}"
