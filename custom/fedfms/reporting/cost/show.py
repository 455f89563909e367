"""The tables of `fedfms cost`, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """A table: which list of the cost it shows, its title, its columns as header -> cell, and what they mean.

    `wide`: columns that a terminal does without.
    """

    of: str
    title: str
    columns: Mapping[str, Callable[[Row], str]]
    wide: tuple[str, ...]
    legend: str


def _number(key: str, digits: int) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else f"{row[key]:,.{digits}f}"


def _significant(key: str) -> Callable[[Row], str]:
    """Four digits that count, without an exponent."""

    def cell(row: Row) -> str:
        value = row[key]
        if value is None:
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.4g}'):.12f}".rstrip("0").rstrip(".")

    return cell


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else str(row[key])


VIEWS: Mapping[str, View] = {
    "bytes": View(
        "rows", "Parameters and bytes",
        {
            "method": _text("method"), "backbone": _text("backbone"), "parameters": _number("parameters", 0),
            "trained": _number("trained", 0), "sent": _number("shared", 0), "MB up": _number("up_mb", 2),
            "MB down": _number("down_mb", 2), "sites": _text("sites"), "rounds": _text("rounds"),
            "study MB up": _number("study_up_mb", 1), "study MB down": _number("study_down_mb", 1),
        },
        ("backbone", "parameters", "study MB down"),
        "trained, sent: parameters (and batch statistics that move); sent: the largest set that ever leaves a site. MB "
        "up, down: 1e6 bytes of float32 a site and round, the mean over both where a method sends parts; study MB: of "
        "all sites and rounds. A pooled method sends nothing: its data lie in one place.",
    ),
    "work": View(
        "rows", "A step, and a prediction",
        {
            "method": _text("method"), "px": _text("input_px"), "batch": _text("batch"),
            "TFLOP forward": _significant("forward_tflop"), "TFLOP backward": _significant("backward_tflop"),
            "TFLOP a slice": _significant("slice_tflop"), "TFLOP by layers": _significant("by_layers_tflop"),
            "MiB state": _number("state_mib", 0), "MiB a step": _number("need_mib", 0),
            "s a step": _significant("step_s"), "s a prediction": _significant("predict_s"),
            "MiB peak": _number("peak_mib", 0), "MiB before": _number("base_mib", 0),
        },
        ("TFLOP a slice", "MiB state", "s a prediction", "MiB before"),
        "TFLOP: 1e12 operations, two a multiply-add, of matrix products and convolutions in a step of the whole batch, "
        "the frozen prefix each time; by layers: linear and convolution layers alone, backward as twice the forward of "
        "those that are trained, which is how the papers' figures come about. MiB (2^20 bytes) state: weights, "
        "gradients and the optimizer's state; a step: what it takes of memory by shapes, in float32, by the default "
        "path, a slice as often as the batch has slices. Peak: measured, of the card, or else of the process, which "
        "had `before` without a model.",
    ),
    "papers": View(
        "papers", "Beside the papers",
        {
            "paper": _text("source"), "its row": _text("label"), "quantity": _text("quantity"),
            "printed": _text("printed"), "unit, worked out": _text("unit"), "ours, in it": _significant("ours"),
            "its MB": _number("paper_mb", 1), "our MB": _number("ours_mb", 1),
        },
        ("its MB", "our MB"),
        "MB: 1e6 bytes of float32. Parameters sent: in one direction, of the paper's 4 sites x 100 rounds; ours too.",
    ),
}  # fmt: skip


def rich_tables(cost: Mapping[str, Any]) -> list[Table]:
    """The tables that have rows, for a terminal."""
    made = []
    for view in VIEWS.values():
        if cost[view.of]:
            table = Table(title=Text(view.title), box=box.SIMPLE_HEAD, padding=0)
            shown = {header: cell for header, cell in view.columns.items() if header not in view.wide}
            for index, header in enumerate(shown):
                two_lines = header.replace(" ", "\n", 1)
                table.add_column(
                    two_lines, justify="right" if index else "left", overflow="fold", vertical="bottom",
                    no_wrap=index > 0,
                )  # fmt: skip
            for row in cost[view.of]:
                table.add_row(*(Text(cell(row)) for cell in shown.values()))
            made.append(table)
    return made


def markdown_rows(view: View, rows: Sequence[Row]) -> str:
    """One table as Markdown."""
    lines = [list(view.columns), ["---"] * len(view.columns)]
    lines += [[cell(row) for cell in view.columns.values()] for row in rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def markdown(cost: Mapping[str, Any]) -> str:
    """All of it as Markdown: tables, what their columns mean, notes, the machine."""
    parts = [f"# Cost on {cost['study']}\n"]
    for view in VIEWS.values():
        if cost[view.of]:
            parts.append(f"## {view.title}\n\n{markdown_rows(view, cost[view.of])}\n{view.legend}\n")
    parts += [f"Note: {note}\n" for note in cost["notes"]]
    machine = ", ".join(f"{key} {value}" for key, value in cost["machine"].items() if value is not None)
    return "\n".join([*parts, f"Machine: {machine}.\n"])
