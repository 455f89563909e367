"""Figures of a table, each as PNG and SVG: curves by round, and scores against a number that variants change."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfms.reporting.curves import COLOURS, MARKERS, literal
from fedfms.reporting.movement import mean_over_rounds
from fedfms.reporting.tables.cells import Cell
from fedfms.reporting.tables.sheets import METRIC_NAMES
from fedfms.reporting.tables.summary import Block, line_name, make_grid, mean_of, over_seeds
from fedfms.reporting.tables.variants import parse_variant

_LINES = ("-", "--", "-.", ":")
_MANY = 8  # more lines do not fit into a corner of the axes: the legend goes below
_WIDE = 30.0  # from here on, numbers above 0 are spread over a log axis


@dataclass(frozen=True)
class Series:
    """A line of a figure: values in 0..1 at `x`, with an error bar where `spread` is known."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure's bytes, and in words what it shows."""

    name: str  # of its files, without suffix
    words: str
    png: bytes
    svg: bytes


def line_plot(
    name: str, title: str, panels: Sequence[tuple[str, Sequence[Series]]], x_label: str, y_label: str
) -> Figure:
    """Panels below each other, each of a title and lines, with one legend a panel.

    The axis of x is logarithmic where all values are above 0 and the largest is 30 times the smallest or more. The
    same lines give the same bytes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    # Text stays text in the SVG: it can be read aloud and searched, and is small.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        figure = Canvas(figsize=(8, 4.2 * max(1, len(panels))), layout="constrained")
        FigureCanvasAgg(figure)  # no pyplot: nothing global, and no display
        all_axes = figure.subplots(max(1, len(panels)), squeeze=False)[:, 0]
        for axes, (heading, series) in zip(all_axes, panels, strict=False):
            _draw(axes, series)
            axes.set(title=literal(heading), xlabel=literal(x_label), ylabel=literal(y_label))
        figure.suptitle(literal(title))
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Figure(name, _words(title, panels, y_label), png.getvalue(), svg.getvalue())


def _draw(axes: Any, series: Sequence[Series]) -> None:
    for index, line in enumerate(series):
        spread = [value or 0.0 for value in line.spread] or None
        axes.errorbar(
            line.x, line.y, yerr=spread if any(spread or ()) else None, capsize=3, markersize=4, linewidth=1.2,
            color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
            linestyle=_LINES[index // len(COLOURS) % len(_LINES)], label=literal(line.label),
        )  # fmt: skip
    values = sorted({x for line in series for x in line.x})
    if values and values[0] > 0 and values[-1] >= _WIDE * values[0]:
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{x:g}" for x in values])  # what was tried, in place of powers of ten
        axes.minorticks_off()
    elif all(float(x).is_integer() for x in values):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if len(series) > _MANY:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize="small")
    elif series:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "nothing to draw", ha="center", transform=axes.transAxes)


def _words(title: str, panels: Sequence[tuple[str, Sequence[Series]]], y_label: str) -> str:
    """For who cannot see it: where each line begins and ends."""
    lines = [
        f"{line.label} from {line.y[0]:.3f} at {line.x[0]:g} to {line.y[-1]:.3f} at {line.x[-1]:g}"
        for _, series in panels
        for line in series
    ]
    return f"{title}. {y_label}: {'; '.join(lines) or 'nothing to draw'}."


def curves(blocks: Sequence[Block]) -> Figure:
    """Dice of the received model by round, a line a method and variant, a panel a study and protocol."""
    panels = [(f"{block.title}, protocol {block.protocol}", _curves(block)) for block in blocks]
    what = "Dice by round: the held-out sites, or the mean over the sites; mean over cells, bar: s.d."
    return line_plot("curves", what, panels, "rounds done", "Dice")


def _curves(block: Block) -> list[Series]:
    found = []
    for line in block.lines:
        told = [points for cell in block.of_line(line) if (points := _points(block, cell))]
        # Only rounds that every cell tells of: a mean over other cells would jump.
        rounds = sorted(set.intersection(*(set(points) for points in told))) if told else []
        scores = [over_seeds(points[round_] for points in told) for round_ in rounds]
        if scores:
            found.append(
                Series(
                    line_name(*line),
                    tuple(map(float, rounds)),
                    tuple(score.mean or 0.0 for score in scores),
                    tuple(score.sd for score in scores),
                )  # fmt: skip
            )
    return found


def _points(block: Block, cell: Cell) -> dict[int, float]:
    """By round, Dice on the held-out site, or the mean over the sites that tell theirs at all."""
    sites = [cell.key.held_out] if cell.key.held_out else list(block.sites)
    sites = [site for site in sites if any(dice.get(site) is not None for _, dice in cell.curve)]
    points = {round_: mean_of([dice.get(site) for site in sites]) for round_, dice in cell.curve}
    return {round_: value for round_, value in points.items() if value is not None}


def ablations(block: Block, model: str = "final") -> list[Figure]:
    """For each name that variants set to two numbers or more: Dice and IoU against it, a line a method and mode."""
    by_name: dict[str, dict[str, list[tuple[float, tuple[str, str]]]]] = {}
    for line in block.lines:
        parsed = parse_variant(line[1])
        if parsed is not None and not isinstance(parsed[1], str):
            by_name.setdefault(parsed[0], {}).setdefault(line[0], []).append((float(parsed[1]), line))
    return [
        _ablation(block, model, name, methods)
        for name, methods in by_name.items()
        if any(len(points) > 1 for points in methods.values())
    ]


def shifts(block: Block) -> list[Figure]:
    """How far a round moves each layer, a line a method and variant, a panel a network; nothing where none is told."""
    lines: dict[tuple[str, ...], list[Series]] = {}
    for line in block.lines:
        told = [cell.shift for cell in block.of_line(line) if cell.shift]
        if told:
            moved = mean_over_rounds(told)
            x = tuple(float(index + 1) for index in range(len(moved)))
            lines.setdefault(tuple(moved), []).append(Series(line_name(*line), x, tuple(moved.values())))
    panels = [(f"layers 1 to {len(layers)}, {layers[0]} to {layers[-1]}", series) for layers, series in lines.items()]
    if not panels:
        return []
    what = f"{block.title}: root mean square change of a layer's parameters in a round"
    return [line_plot(f"shift-{_plain(block.study)}", what, panels, "layer, from input to output", "change")]


def _ablation(
    block: Block, model: str, name: str, methods: Mapping[str, Sequence[tuple[float, tuple[str, str]]]]
) -> Figure:
    panels = []
    for metric, metric_name in METRIC_NAMES.items():
        series = []
        for mode in (mode for mode in block.modes if mode != "volume"):
            of = {(line.method, line.variant): line.average for line in make_grid(block, model, mode, metric).lines}
            for method, points in methods.items():
                known = [(x, score) for x, line in sorted(points) if (score := of[line]).mean is not None]
                if known:
                    series.append(
                        Series(
                            f"{method}, {mode}",
                            tuple(x for x, _ in known),
                            tuple(s.mean or 0.0 for _, s in known),
                            tuple(s.sd for _, s in known),
                        )  # fmt: skip
                    )
        panels.append((metric_name, series))
    safe = _plain(f"{block.study}-{name}")
    title = f"{block.title}, protocol {block.protocol}: average over the columns, bar: s.d. over seeds"
    return line_plot(f"ablation-{safe}", title, panels, name, "average, 0..1")


def _plain(text: str) -> str:
    """For a file's name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)
