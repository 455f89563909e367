"""Curves of a run: Dice of the global model by site after each round, and the training loss."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

# Okabe and Ito's palette without its yellow, which is too light for a line; then again with another marker.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D")
_MANY_SITES = 8  # more do not fit into a corner of the axes: the legend goes below both panels


def curves_png(results: Mapping[str, Any]) -> bytes:
    """PNG of two panels, 1210 px wide; the mean of the sites that train is bold, held-out sites are dashed."""
    # Imported here: a site draws overlays with this package in every process, and never a curve.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, and no display
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _style(index: int, *, held_out: bool) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index // len(COLOURS) % len(MARKERS)],
        "linestyle": "--" if held_out else "-",
        "linewidth": 1.2,
    }


def _plot(axes: Any, rounds: Sequence[int], values: Sequence[float | None], *, label: str = "", **style: Any) -> None:
    """A line through the known points; a gap is bridged, its missing marker shows it."""
    points = [(x, y) for x, y in zip(rounds, values, strict=True) if y is not None]
    if points:
        axes.plot(*zip(*points, strict=True), markersize=4, label=literal(label), **style)


def literal(text: str) -> str:
    """`text` with nothing in it that matplotlib takes for a formula, or for a label to hide."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
