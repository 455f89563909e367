"""The sheets of a table: the texts of all cells, independent of the output format."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic.dataclasses import dataclass

from fedfms.reporting.scores import clean_number
from fedfms.reporting.tables.published import Comparison
from fedfms.reporting.tables.runs import Run
from fedfms.reporting.tables.significance import POOLED, PairedTest
from fedfms.reporting.tables.summary import Block, Column, Score, ScoreTable, line_name
from fedfms.schema import STRICT
from fedfms.training.metrics import METRICS, THRESHOLDS, VOLUME

NONE = "-"
FEWER = "*"
BEST, SECOND = "best", "second"
METRIC_NAMES = {"dice": "Dice", "iou": "IoU"}
MODE_NAMES = {
    "standard": "in standard mode: sigmoid > 0.5, mean over images, excluding images empty in truth and prediction",
    "fedfms": (
        f"in fedfms mode, as in the paper's code: raw logit > {', '.join(map(str, THRESHOLDS))}, smoothed ratios "
        "averaged over these thresholds, mean over images"
    ),
    VOLUME: "in volume mode: sigmoid > 0.5, of a whole case over all its slices, mean over cases",
}
PROTOCOL_NAMES = {
    "held-out": "each column: the model trained on the other sites, on all images of this site",
    "personal": "each column: the site's personal model on its own test part",
}


@dataclass(frozen=True, config=STRICT)
class Cell:
    """A cell of a sheet: its text, the value to sort by, and whether it is the best or second of its column."""

    text: str
    value: int | float | None = None
    mark: str = ""


@dataclass(frozen=True, config=STRICT)
class Sheet:
    """A table as people read it. The first `names` cells of a row are names; `foot`: rows that stay at the bottom."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[tuple[Cell, ...], ...] = ()
    names: int = 1
    sorts: bool = True
    """Can be sorted by any column: false if rows belong together."""


def score_sheet(block: Block, table: ScoreTable) -> Sheet:
    """The scores of a mode and metric: a line per method, a column per site and structure, average, seeds and runs."""
    lines = [(*table.scores[line], table.averages[line]) for line in block.lines]
    marks = list(zip(*map(_marks, zip(*lines, strict=True)), strict=True))
    rows = []
    for line, scores, of_line in zip(block.lines, lines, marks, strict=True):
        seeds, done = max(score.seeds for score in scores[:-1]), len(block.of_line(line))
        planned = sum(key.line == line for key in block.planned)
        cells = (_score(score, mark, of=len(block.seeds)) for score, mark in zip(scores, of_line, strict=True))
        rows.append((Cell(line_name(line)), *cells, Cell(str(seeds), seeds), Cell(f"{done} of {planned}", done)))
    counts = [_count_range(score.images for score in scores) for scores in zip(*lines, strict=True)]
    return Sheet(
        title=f"{METRIC_NAMES[table.metric]}, {table.mode} mode, {table.model} model",
        caption=caption(block, table),
        head=("method", *(column_name(block, column) for column in table.columns), "average", "seeds", "runs"),
        rows=tuple(rows),
        foot=((Cell("images"), *map(Cell, counts[:-1]), Cell(""), Cell(""), Cell("")),),
    )


def column_name(block: Block, column: Column) -> str:
    """The site, and the structure if there are several."""
    return column[0] if len(block.study.structure_names) == 1 else ", ".join(column)


def caption(block: Block, table: ScoreTable) -> str:
    """The full description of a table of scores."""
    seeds = ", ".join(map(str, block.seeds))
    spread = "mean and sample s.d. over" if len(block.seeds) > 1 else "of"
    rounds = sorted({run.models[table.model].round for run in block.runs if table.model in run.models})
    after = f"{_span(rounds)} rounds" if rounds else "no rounds"
    scores = [score for of_line in table.scores.values() for score in of_line] + list(table.averages.values())
    counts = {score.seeds for score in scores} - {0, len(block.seeds)}
    fewer = f", {FEWER} over fewer of them" if counts else ""
    parts = [
        f"{METRIC_NAMES[table.metric]} of the {table.model} model ({after}) on {block.title}",
        f"protocol {block.protocol}, {PROTOCOL_NAMES[block.protocol]}",
        MODE_NAMES[table.mode],
        f"{spread} {count_text(len(block.seeds), 'seed')} ({seeds}){fewer}",
        "best of a column bold, second underlined",
    ]
    by_column = zip(table.columns, *table.scores.values(), strict=True)
    unscored = [column_name(block, column) for column, *of in by_column if all(score.mean is None for score in of)]
    if 0 < len(unscored) < len(table.columns):
        parts.append(f"the average excludes {'; '.join(unscored)}, for which there is no score")
    parts += [note] if (note := not_finished(block)) else []
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def not_finished(block: Block) -> str:
    """The number of missing runs as a note; empty if none is missing."""
    return f"not finished: {block.missing} of {count_text(len(block.planned), 'run')}" if block.missing else ""


def comparison_sheets(comparison: Comparison) -> list[Sheet]:
    """A sheet per metric: of each method the paper's figures, ours, and the differences."""
    sheets = []
    for metric in METRICS:
        rows: list[tuple[Cell, ...]] = []
        for side in (side for side in comparison.sides if side.metric == metric):
            pairs = (*side.pairs, side.average)
            note = f" ({side.note})" if side.note else ""
            rows.append((Cell(side.name), Cell(f"paper, {side.their_name}"), *(_number(p.theirs) for p in pairs)))
            rows.append((Cell(side.name), Cell(f"ours{note}"), *(_score(pair.ours) for pair in pairs)))
            rows.append((Cell(side.name), Cell("difference"), *(_number(p.difference, sign="+") for p in pairs)))
        title = f"{METRIC_NAMES[metric]} compared with {comparison.paper}"
        text = f"{title}, final model, {comparison.mode} mode. Average: {comparison.average}."
        head = ("method", "of", *comparison.columns, "average")
        sheets.append(Sheet(title, " ".join([text, *comparison.notes]), head, tuple(rows), names=2, sorts=False))
    return sheets


def significance_sheets(tests: Sequence[PairedTest]) -> list[Sheet]:
    """The paired tests: over all sites together, then site by site."""
    legend = (
        "Wilcoxon's signed-rank test of an image's Dice, federated against centralised, two-sided. Images without a "
        "difference are dropped, ties share their rank; exact for up to 50 differences without ties, else approximate. "
        "Holm: corrected for the number of compared methods. A p above 0.05 means that no difference was found, not "
        "that there is none. Slices of one case are not independent, which makes p too small."
    )
    head = ("method", "against", "mode", "site", "images", "differ", "mean difference", "p", "p (Holm)", "how")
    sheets = []
    for title, chosen in (
        ("Federated against centralised, all sites", [test for test in tests if test.site == POOLED]),
        ("Federated against centralised, by site", [test for test in tests if test.site != POOLED and test.images]),
    ):
        if rows := tuple(_test_row(test) for test in chosen):
            sheets.append(Sheet(title, legend, head, rows, names=4))
    return sheets


def _test_row(test: PairedTest) -> tuple[Cell, ...]:
    names = (line_name(test.line), line_name(test.counterpart), test.mode, test.site or "all")
    return (
        *map(Cell, names),
        Cell(str(test.images), test.images),
        Cell(str(test.differing), test.differing),
        _number(test.difference, sign="+"),
        _p_value(test.p),
        _p_value(test.holm),
        Cell(test.how or f"no test: {test.reason}"),
    )


def cost_sheet(block: Block) -> Sheet:
    """Means over a line's runs: traffic, and seconds on this machine."""
    rows = []
    for line in block.lines:
        runs = block.of_line(line)
        amounts = (
            *(_mean(run.result.traffic.get(key) for run in runs) for key in ("up_mb", "down_mb")),
            _mean(_mean(_rounds(run)) for run in runs),
            _mean(_total(run) for run in runs),
        )
        cells = (Cell(NONE if value is None else f"{value:,.2f}", value) for value in amounts)
        rows.append((Cell(line_name(line)), *cells, Cell(str(len(runs)), len(runs))))
    return Sheet(
        title="Cost",
        caption=(
            "MB (1e6 bytes) per site and round, up to the server and down to the site; seconds on the machine below; "
            "means over the finished runs. A centralised method sends nothing."
        ),
        head=("method", "MB up", "MB down", "s a round", "s a run", "runs"),
        rows=tuple(rows),
    )


def differing_settings(block: Block) -> list[str]:
    """Notes on what differs between runs in schedule and data. Variants are excluded, since they differ on purpose.

    nnU-Net has its own augmentation, so `augment` is not compared.
    """
    plain = [run.study for run in block.runs if not run.key.variant]
    notes = []
    for section in ("train", "data"):
        settings = [dataclasses.asdict(getattr(study, section)) for study in plain]
        for name in settings[0] if settings else ():
            values = sorted({str(values[name]) for values in settings})
            if len(values) > 1 and name not in ("augment", "cache"):
                notes.append(f"Not all runs have the same settings: {section}.{name} is {' or '.join(values)}.")
    return notes


def made_with(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Machines and versions of the runs by name; if runs differ, every value with its number of runs."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for of in (run.result.machine, run.result.versions):
            for name, value in _flat(of):
                found.setdefault(name, []).append(value)
    return [(name, values[0] if len({*values}) == 1 else _each(values)) for name, values in found.items()]


def _each(values: Sequence[str]) -> str:
    return "; ".join(f"{value} ({count_text(values.count(value), 'run')})" for value in sorted({*values}))


def _flat(raw: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}".replace("_", " "), NONE if value is None else str(value)


def _total(run: Run) -> float | None:
    """Seconds of the rounds and of the final evaluation."""
    rounds = _rounds(run)
    return sum(rounds) + (clean_number(run.result.seconds.get("evaluate")) or 0) if rounds else None


def _rounds(run: Run) -> list[float]:
    """Known seconds of the rounds."""
    values = run.result.seconds.get("rounds")
    return [value for value in values if clean_number(value) is not None] if isinstance(values, list) else []


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if clean_number(value) is not None]
    return statistics.fmean(known) if known else None


def _marks(scores: Sequence[Score]) -> list[str]:
    """Best and second of a column, by their texts: equal texts get equal marks. A single score gets no mark."""
    shown = [None if score.mean is None else f"{score.mean:.3f}" for score in scores]
    ranked = sorted({text for text in shown if text is not None}, reverse=True)
    if sum(text is not None for text in shown) < 2:
        return [""] * len(shown)
    marks = dict(zip(ranked, (BEST, SECOND), strict=False))
    return ["" if text is None else marks.get(text, "") for text in shown]


def _score(score: Score, mark: str = "", *, of: int = 0) -> Cell:
    if score.mean is None:
        return Cell(NONE)
    spread = "" if score.sd is None else f" ± {score.sd:.3f}"
    return Cell(f"{score.mean:.3f}{spread}{FEWER if score.seeds < of else ''}", score.mean, mark)


def _number(value: float | None, sign: str = "") -> Cell:
    return Cell(NONE if value is None else f"{value:{sign}.3f}", value)


def _p_value(value: float | None) -> Cell:
    return Cell("< 0.001", value) if value is not None and value < 0.001 else _number(value)


def _count_range(ranges: Iterable[tuple[int, int] | None]) -> str:
    known = [count for counts in ranges if counts for count in counts]
    return _span(sorted({*known})) if known else NONE


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]}-{numbers[-1]}"


def count_text(count: int, what: str) -> str:
    """A count and the counted things, in the plural if needed."""
    return f"{count} {what}{'' if count == 1 else 's'}"
