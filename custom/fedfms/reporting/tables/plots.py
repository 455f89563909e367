"""Figures of a table as PNG and SVG: curves by round, ablations (scores against a variant's number), layer shifts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfms.reporting.figures import COLOURS, MARKERS, image, literal, new_figure
from fedfms.reporting.layer_shift import mean_by_layer
from fedfms.reporting.tables.runs import Run
from fedfms.reporting.tables.sheets import METRIC_NAMES
from fedfms.reporting.tables.summary import (
    Block,
    Line,
    Score,
    line_name,
    mean_of,
    over_seeds,
    parse_variant,
    score_table,
)  # fmt: skip
from fedfms.training.metrics import VOLUME

_LINES = ("-", "--", "-.", ":")
_MANY = 8  # with more lines, the legend goes below the axes
_WIDE = 30.0  # ratio of the largest to the smallest number from which the axis is logarithmic


@dataclass(frozen=True)
class Series:
    """A line of a figure: values in 0..1 at `x`, with an error bar where `spread` is known."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure's bytes, and a description for readers who cannot see it."""

    name: str  # of its files, without suffix
    description: str
    png: bytes
    svg: bytes


Panels = Sequence[tuple[str, Sequence[Series]]]  # title and lines of each


def line_plot(name: str, title: str, panels: Panels, x_label: str, y_label: str) -> Figure:
    """Panels below each other, each with its own legend. The same lines give the same bytes.

    The x axis is logarithmic if all values are above 0 and the largest is at least 30 times the smallest.
    """
    from matplotlib import rc_context

    # Text stays text in the SVG: it can be read aloud and searched, and is small.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        figure = new_figure(8, 4.2 * max(1, len(panels)))
        all_axes = figure.subplots(max(1, len(panels)), squeeze=False)[:, 0]
        for axes, (heading, series) in zip(all_axes, panels, strict=False):
            _draw(axes, series)
            axes.set(title=literal(heading), xlabel=literal(x_label), ylabel=literal(y_label))
        figure.suptitle(literal(title))
        png = image(figure, "png", metadata={"Software": None})
        svg = image(figure, "svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Figure(name, _description(title, panels, y_label), png, svg)


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
        axes.set_xticks(values, [f"{x:g}" for x in values])  # the values themselves instead of powers of ten
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


def _description(title: str, panels: Panels, y_label: str) -> str:
    """The first and the last value of each line."""
    lines = [
        f"{line.label} from {line.y[0]:.3f} at {line.x[0]:g} to {line.y[-1]:.3f} at {line.x[-1]:g}"
        for _, series in panels
        for line in series
    ]
    return f"{title}. {y_label}: {'; '.join(lines) or 'nothing to draw'}."


def curves(blocks: Sequence[Block]) -> Figure:
    """Dice of the received model by round: a line per method and variant, a panel per study and protocol."""
    panels = [(f"{block.title}, protocol {block.protocol}", _curves(block)) for block in blocks]
    title = "Dice by round: the held-out sites, or the mean over the sites; mean over runs, bar: s.d."
    return line_plot("curves", title, panels, "rounds done", "Dice")


def _curves(block: Block) -> list[Series]:
    found = []
    for line in block.lines:
        all_points = [points for run in block.of_line(line) if (points := _points(block, run))]
        # Only rounds that every run has: a mean over other runs would jump.
        rounds = sorted(set.intersection(*(set(points) for points in all_points))) if all_points else []
        if rounds:
            scores = [(float(round_), over_seeds(points[round_] for points in all_points)) for round_ in rounds]
            found.append(_series(line_name(line), scores))
    return found


def _series(label: str, points: Sequence[tuple[float, Score]]) -> Series:
    x = tuple(value for value, _ in points)
    return Series(label, x, tuple(score.mean or 0.0 for _, score in points), tuple(score.sd for _, score in points))


def _points(block: Block, run: Run) -> dict[int, float]:
    """By round, Dice on the held-out site, or the mean over the sites that report any Dice."""
    curve = {point.round: point.dice for point in run.result.curve}
    sites = [run.key.held_out] if run.key.held_out else list(block.sites)
    sites = [site for site in sites if any(dice.get(site) is not None for dice in curve.values())]
    points = {round_: mean_of([dice.get(site) for site in sites]) for round_, dice in curve.items()}
    return {round_: value for round_, value in points.items() if value is not None}


def ablations(block: Block, model: str = "final") -> list[Figure]:
    """For each name that variants set to at least two numbers: Dice and IoU against it, a line per method and mode."""
    by_name: dict[str, dict[str, list[tuple[float, Line]]]] = {}
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
    """How far a round moves each layer: a line per method and variant, a panel per network; empty if unknown."""
    lines: dict[tuple[str, ...], list[Series]] = {}
    for line in block.lines:
        known = [run.shift for run in block.of_line(line) if run.shift]
        if known:
            shift = mean_by_layer(known)
            x = tuple(float(index + 1) for index in range(len(shift)))
            lines.setdefault(tuple(shift), []).append(Series(line_name(line), x, tuple(shift.values())))
    panels = [(f"layers 1 to {len(layers)}, {layers[0]} to {layers[-1]}", series) for layers, series in lines.items()]
    if not panels:
        return []
    title = f"{block.title}: root mean square change of a layer's parameters in a round"
    return [line_plot(f"shift-{_file_name(block.study.name)}", title, panels, "layer, from input to output", "change")]


def _ablation(block: Block, model: str, name: str, methods: Mapping[str, Sequence[tuple[float, Line]]]) -> Figure:
    panels = []
    for metric, metric_name in METRIC_NAMES.items():
        series = []
        for mode in (mode for mode in block.modes if mode != VOLUME):
            table = score_table(block, model, mode, metric)
            for method, points in methods.items():
                known = [(x, score) for x, line in sorted(points) if (score := table.averages[line]).mean is not None]
                if known:
                    series.append(_series(f"{method}, {mode}", known))
        panels.append((metric_name, series))
    title = f"{block.title}, protocol {block.protocol}: average over the columns, bar: s.d. over seeds"
    return line_plot(f"ablation-{_file_name(f'{block.study.name}-{name}')}", title, panels, name, "average, 0..1")


def _file_name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)
