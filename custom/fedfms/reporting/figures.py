"""The curves of a run, and what all figures of reports share: colours, safe labels, images as bytes.

Matplotlib is imported inside functions: a site imports this package in every process and never draws a curve.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too light for a line.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D")
_DPI = 110
_MANY_SITES = 8  # with more sites, the legend goes below both panels


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; without pyplot, so that there is no global state and no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def image(figure: Figure, kind: str, **options: Any) -> bytes:
    """The figure as "png" (110 pixels per inch) or "svg"; `options` of matplotlib's `savefig`."""
    buffer = io.BytesIO()
    dpi: dict[str, Any] = {"dpi": _DPI} if kind == "png" else {}
    figure.savefig(buffer, format=kind, **dpi, **options)
    return buffer.getvalue()


def literal(text: str) -> str:
    """`text` for a label: matplotlib must not read it as a formula, nor hide it."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def curves_png(results: Mapping[str, Any]) -> bytes:
    """PNG of two panels, 1210 px wide. The mean over the training sites is bold; held-out sites are dashed."""
    figure = new_figure(11, 4.2)
    dice_axes, loss_axes = figure.subplots(1, 2)
    curves = results["curves"]
    for index, (site, curve) in enumerate(curves["sites"].items()):
        style = _style(index, held_out=curve["held_out"])
        label = f"{site} (held out)" if curve["held_out"] else site
        _plot(dice_axes, curves["rounds"], curve["dice"], label=label, **style)
        if not curve["held_out"]:
            _plot(loss_axes, curves["rounds"], curve["train_loss"], **style)
    mean: dict[str, Any] = {"color": "black", "linewidth": 2.5, "marker": ".", "label": "mean of the sites that train"}
    _plot(dice_axes, curves["rounds"], curves["mean_dice"], **mean)
    dice_axes.set(
        xlabel="rounds done", ylabel="Dice of the global model", ylim=(0, 1), title="Dice (0: before training)"
    )
    loss_axes.set(xlabel="rounds done", ylabel="mean loss of the last round", title="Training loss")
    for axes in (dice_axes, loss_axes):
        axes.grid(alpha=0.3)
        axes.set_xlim(-0.3, max(curves["rounds"], default=0) + 0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss_axes.set_ylim(bottom=min(0.0, loss_axes.dataLim.y0))  # a method's penalty may be negative
    if dice_axes.lines and len(curves["sites"]) > _MANY_SITES:
        figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    elif dice_axes.lines:
        dice_axes.legend(fontsize="small")
    figure.suptitle(
        literal(f"{results['method']} on {results['study']}, {results['backbone']}, seed {results['seed']}")
    )
    return image(figure, "png")


def _style(index: int, *, held_out: bool) -> dict[str, Any]:
    """Each colour is used again with another marker."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index // len(COLOURS) % len(MARKERS)],
        "linestyle": "--" if held_out else "-",
        "linewidth": 1.2,
    }


def _plot(axes: Any, rounds: Sequence[int], values: Sequence[float | None], *, label: str = "", **style: Any) -> None:
    """A line through the known points. It bridges a gap, which shows as a missing marker."""
    points = [(x, y) for x, y in zip(rounds, values, strict=True) if y is not None]
    if points:
        axes.plot(*zip(*points, strict=True), markersize=4, label=literal(label), **style)
