"""The tables of `fedfms cost`, for a terminal and as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from fedfms.reporting.text import markdown_table, terminal_table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """A table of the cost.

    of: the list of the cost that it shows. columns: header -> text of a row. wide: columns that a terminal omits.
    """

    of: str
    title: str
    columns: Mapping[str, Callable[[Row], str]]
    wide: tuple[str, ...]
    legend: str


def _number(key: str, digits: int) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else f"{row[key]:,.{digits}f}"


def _significant(key: str) -> Callable[[Row], str]:
    """Four significant digits, without an exponent."""

    def text(row: Row) -> str:
        value = row.get(key)  # a cost of an older version lacks some
        if value is None:
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.4g}'):.12f}".rstrip("0").rstrip(".")

    return text


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
        "trained, sent: parameters, and shared batch statistics; sent: the largest set that ever leaves a site. MB up, "
        "down: 1e6 bytes of float32 per site and round, a mean over sites and rounds where a method sends parts; study "
        "MB: of all sites and rounds. A centralised method sends nothing: its data are in one place.",
    ),
    "work": View(
        "rows", "A step, and a prediction",
        {
            "method": _text("method"), "px": _text("input_px"), "batch": _text("batch"),
            "TFLOP forward": _significant("forward_tflop"), "TFLOP cached": _significant("cached_tflop"),
            "TFLOP backward": _significant("backward_tflop"),
            "TFLOP a slice": _significant("slice_tflop"), "TFLOP by layers": _significant("by_layers_tflop"),
            "MiB state": _number("state_mib", 0), "MiB a step": _number("need_mib", 0),
            "s a step": _significant("step_s"), "s a prediction": _significant("predict_s"),
            "MiB peak": _number("peak_mib", 0), "MiB before": _number("base_mib", 0),
        },
        ("TFLOP a slice", "MiB state", "s a prediction", "MiB before"),
        "TFLOP: 1e12 operations, two per multiply-add, of matrix products and convolutions in a step of the whole "
        "batch, including the frozen prefix, which is computed once per image if it is cached; by layers: linear and "
        "convolution layers only, with the backward pass as twice the forward pass of the trained ones, which "
        "explains the papers' figures. MiB (2^20 bytes) state: weights, gradients and the optimizer's state; a step: "
        "memory estimated from shapes, in float32, on the default attention path, one slice times the batch size. "
        "Peak: measured, of the GPU if there is one, else of the process, which used `before` without a model.",
    ),
    "papers": View(
        "papers", "Compared with the papers",
        {
            "paper": _text("source"), "its row": _text("label"), "quantity": _text("quantity"),
            "printed": _text("printed"), "unit, worked out": _text("unit"), "ours, in it": _significant("ours"),
            "its MB": _number("paper_mb", 1), "our MB": _number("ours_mb", 1),
        },
        ("its MB", "our MB"),
        "MB: 1e6 bytes of float32. Parameters sent: in one direction, for the paper's 4 sites x 100 rounds.",
    ),
}  # fmt: skip


def rich_tables(cost: Mapping[str, Any]) -> list[Table]:
    """The tables that have rows, for a terminal."""
    tables = []
    for view in VIEWS.values():
        if cost[view.of]:
            shown = {header: text for header, text in view.columns.items() if header not in view.wide}
            rows = ([text(row) for text in shown.values()] for row in cost[view.of])
            head = (header.replace(" ", "\n", 1) for header in shown)
            tables.append(terminal_table(head, rows, title=view.title))
    return tables


def markdown_rows(view: View, rows: Sequence[Row]) -> str:
    """One table as Markdown."""
    return markdown_table(
        list(view.columns), ([text(row).replace("|", "/") for text in view.columns.values()] for row in rows)
    )


def markdown(cost: Mapping[str, Any]) -> str:
    """Tables, legends, notes and the machine as Markdown."""
    parts = [f"# Cost on {cost['study']}\n"]
    for view in VIEWS.values():
        if cost[view.of]:
            parts.append(f"## {view.title}\n\n{markdown_rows(view, cost[view.of])}\n{view.legend}\n")
    parts += [f"Note: {note}\n" for note in cost["notes"]]
    machine = ", ".join(f"{key} {value}" for key, value in cost["machine"].items() if value is not None)
    return "\n".join([*parts, f"Machine: {machine}.\n"])
