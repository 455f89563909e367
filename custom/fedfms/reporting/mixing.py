"""The weights by which a server made each site's own mixture (W of FedSCA), round by round: checked, and drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedfms.reporting.curves import literal
from fedfms.reporting.scores import clean_number

_SUM_TOLERANCE = 1e-3
_WRITTEN_SITES = 8  # more weights than these sites' cannot be read in their squares
_ROUND_TICKS = 10
_DARK = 0.6  # weights below it are dark squares
_UNKNOWN = "#bbbbbb"


def clean_mixing(raw: Any, sites: Collection[str]) -> dict[str, Any] | None:
    """A line of mixing.jsonl as {"round", "sites": those that answered, "rows": {site: {site: weight}}}.

    None where it is not one: a weight that is no number in 0..1, a row whose sum is not 1, a weight on a site that did
    not answer, a name that is not among `sites` (empty: any name is taken).
    """
    try:
        round_, answered = raw["round"], list(raw["W"]["sites"])
        rows = {site: _row(row, answered) for site, row in raw["W"]["rows"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if isinstance(round_, bool) or not isinstance(round_, int) or round_ < 0:
        return None
    names = [*answered, *rows]
    if not all(isinstance(name, str) and (not sites or name in sites) for name in names):
        return None
    return {"round": round_, "sites": answered, "rows": rows} if len(set(answered)) == len(answered) else None


def _row(raw: Mapping[str, Any], answered: Sequence[str]) -> dict[str, float]:
    row = {site: clean_number(weight) for site, weight in raw.items()}
    weights = [weight for weight in row.values() if weight is not None and 0 <= weight <= 1]
    if len(weights) < len(row) or not set(row) <= set(answered) or abs(math.fsum(weights) - 1) > _SUM_TOLERANCE:
        raise ValueError("no weights of a mean")
    return dict(zip(row, weights, strict=True))


def mixing_line(mixing: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on W for the report; empty where nothing was recorded."""
    if not mixing:
        return ""
    first, last = mixing[0]["round"], mixing[-1]["round"]
    own = sorted((row.get(site, 0.0), site) for site, row in mixing[-1]["rows"].items())
    rounds = f"rounds {first} to {last}" if len(mixing) > 1 else f"round {last}"
    line = f"The server made each site a mixture of its own: mixing.png shows the weights W of {rounds}"
    if not own:
        return f"{line}."
    (low, lowest), (high, highest) = own[0], own[-1]
    return f"{line}; in the last, a site's weight on itself is from {low:.3f} ({lowest}) to {high:.3f} ({highest})."


def mixing_png(mixing: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of two heat maps, 1320 px wide: W of the last round, and W of all rounds, a stripe for each pair of sites.

    Grey: no weight was decided, because the one site did not answer, or the other got no mixture.
    """
    # Imported here as in `curves`.
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sites = sorted({name for entry in mixing for name in (*entry["sites"], *entry["rows"])})
    weights = np.array([_matrix(entry, sites) for entry in mixing])  # (rounds, to, from)
    figure = Figure(figsize=(12, min(4 + 0.35 * len(sites), 12)), layout="constrained")
    FigureCanvasAgg(figure)
    last_axes, rounds_axes = figure.subplots(1, 2)
    style = {
        "cmap": colormaps["viridis"].with_extremes(bad=_UNKNOWN), "vmin": 0, "vmax": 1, "interpolation": "nearest",
    }  # fmt: skip
    names, rounds = [literal(site) for site in sites], [entry["round"] for entry in mixing]
    _draw_last(last_axes, weights[-1], names, rounds[-1], style)
    image = _draw_rounds(rounds_axes, weights, names, rounds, style)
    figure.colorbar(image, ax=rounds_axes, label="weight")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


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
    """A band a site, in it a stripe for each site that it takes from; returns the image, for its colour bar."""
    count, done = len(names), len(rounds)
    image = axes.imshow(weights.reshape(done, count * count).T, aspect="auto", **style)
    axes.set_yticks([(index + 0.5) * count - 0.5 for index in range(count)], names)
    for index in range(1, count):
        axes.axhline(index * count - 0.5, color="white", linewidth=1.5)
    ticks = range(0, done, math.ceil(done / _ROUND_TICKS))
    axes.set_xticks(ticks, [str(rounds[index]) for index in ticks])
    axes.set(xlabel="round", title="W by round; in each band: of each site's tensors")
    return image


def _matrix(entry: Mapping[str, Any], sites: Sequence[str]) -> list[list[float]]:
    """(to, from), NaN where nothing was decided; what a row does not name of the sites that answered is 0."""
    return [
        [
            entry["rows"][to].get(of, 0.0) if to in entry["rows"] and of in entry["sites"] else math.nan
            for of in sites
        ]
        for to in sites
    ]  # fmt: skip
