"""Mixing weights of a round (W of FedSCA), with which the server averages a personal model for each site: text, figure.

An entry is {"round", "sites": those that answered, "rows": {site: {site: weight}}}; see `fedfms.reporting.records`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfms.reporting.figures import image, literal, new_figure

_WRITTEN_SITES = 8  # with more sites, the weights do not fit into their squares
_ROUND_TICKS = 10
_DARK = 0.6  # weights below it are dark squares
_UNKNOWN = "#bbbbbb"


def mixing_line(mixing: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on W for the report; empty if nothing was recorded."""
    if not mixing:
        return ""
    first, last = mixing[0]["round"], mixing[-1]["round"]
    own = sorted((row.get(site, 0.0), site) for site, row in mixing[-1]["rows"].items())
    rounds = f"rounds {first} to {last}" if len(mixing) > 1 else f"round {last}"
    line = f"Each site received a personal mixture of the sites' tensors: mixing.png shows the weights W of {rounds}"
    if not own:
        return f"{line}."
    (low, lowest), (high, highest) = own[0], own[-1]
    return f"{line}; in the last, a site's own weight ranges from {low:.3f} ({lowest}) to {high:.3f} ({highest})."


def mixing_png(mixing: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of two heat maps, 1320 px wide: W of the last round, and W of all rounds with a stripe per pair of sites.

    Grey: no weight, because the one site did not answer, or the other got no mixture.
    """
    import numpy as np
    from matplotlib import colormaps

    sites = sorted({name for entry in mixing for name in (*entry["sites"], *entry["rows"])})
    weights = np.array([_matrix(entry, sites) for entry in mixing])  # (rounds, to, from)
    figure = new_figure(12, min(4 + 0.35 * len(sites), 12))
    last_axes, rounds_axes = figure.subplots(1, 2)
    style = {
        "cmap": colormaps["viridis"].with_extremes(bad=_UNKNOWN), "vmin": 0, "vmax": 1, "interpolation": "nearest",
    }  # fmt: skip
    names, rounds = [literal(site) for site in sites], [entry["round"] for entry in mixing]
    _draw_last(last_axes, weights[-1], names, rounds[-1], style)
    drawn = _draw_rounds(rounds_axes, weights, names, rounds, style)
    figure.colorbar(drawn, ax=rounds_axes, label="weight")
    return image(figure, "png")


def _draw_last(axes: Any, weights: Any, names: Sequence[str], round_: int, style: Mapping[str, Any]) -> None:
    axes.imshow(weights, **style)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="of this site's tensors", ylabel="this site's mixture", title=f"W after round {round_}")
    if len(names) > _WRITTEN_SITES:
        return
    for row, values in enumerate(weights):
        for column, weight in enumerate(values):
            if not math.isnan(weight):
                colour = "white" if weight < _DARK else "black"
                axes.text(column, row, f"{weight:.2f}", ha="center", va="center", color=colour)


def _draw_rounds(axes: Any, weights: Any, names: Sequence[str], rounds: Sequence[int], style: Mapping[str, Any]) -> Any:
    """A band per site, with a stripe for each site in its mixture; returns the image, for its colour bar."""
    count, done = len(names), len(rounds)
    drawn = axes.imshow(weights.reshape(done, count * count).T, aspect="auto", **style)
    axes.set_yticks([(index + 0.5) * count - 0.5 for index in range(count)], names)
    for index in range(1, count):
        axes.axhline(index * count - 0.5, color="white", linewidth=1.5)
    ticks = range(0, done, math.ceil(done / _ROUND_TICKS))
    axes.set_xticks(ticks, [str(rounds[index]) for index in ticks])
    axes.set(xlabel="round", title="W by round; in each band: of each site's tensors")
    return drawn


def _matrix(entry: Mapping[str, Any], sites: Sequence[str]) -> list[list[float]]:
    """W as (to, from): NaN where there is no weight, 0 where a row omits a site that answered."""
    rows, answered = entry["rows"], entry["sites"]
    return [[rows[to].get(of, 0.0) if to in rows and of in answered else math.nan for of in sites] for to in sites]
