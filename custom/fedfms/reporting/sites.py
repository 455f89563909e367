"""How different the sites are (`fedfms sites`): tables for a terminal and as Markdown, and a figure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from fedfms.data.profile import CHANNELS, GREY_BINS
from fedfms.reporting.figures import image, literal, new_figure
from fedfms.reporting.text import markdown_table, terminal_table

_LEGEND = (
    "Numbers are over at least {min_cases} patients of equal weight; -: suppressed, over fewer. Mean (s.d.) over "
    "patients; area: a structure's share of the image, over the images that show it; empty: the share of images that "
    "do not. Distance 0: the same distribution. Grey values: Jensen-Shannon distance (1: no overlap), the mean over "
    "three channels. Area: Wasserstein distance, in shares of the image."
)
_WRITTEN_SITES = 10  # with more sites, the numbers do not fit into a heat map's squares
_OUTLINES = {"red": "#D55E00", "green": "#009E73", "blue": "#0072B2"}  # of Okabe and Ito's palette
_GREY = "#555555"

Named = tuple[str, list[list[float | None]]]


def _matrices(compared: Mapping[str, Any]) -> list[Named]:
    """Title and distances of each matrix."""
    distances = compared["distances"]
    areas = [(f"area of {name}", matrix) for name, matrix in distances["area"].items()]
    return [("grey values", distances["intensity"]), *areas]


def _site_rows(compared: Mapping[str, Any]) -> Iterator[list[str]]:
    """Header, then a row per site and structure."""
    yield ["site", "patients", "images", "slices a case", "height px", "width px", "structure", "area %", "empty %"]
    for site in compared["sites"]:
        for number, structure in enumerate(site["structures"]):
            whole = [
                site["site"], f"{site['patients']:,}", f"{site['images']:,}",
                *(_mean_sd(site[key]) for key in ("slices_per_case", "height_px", "width_px")),
            ]  # fmt: skip
            empty = "-" if structure["empty"] is None else f"{100 * structure['empty']:.1f}"
            area = _mean_sd(structure["area"], times=100)
            yield [*(whole if not number else [""] * len(whole)), structure["name"], area, empty]


def _distance_rows(named: Named, sites: Sequence[str]) -> Iterator[list[str]]:
    """Header, then a row per site. Columns are numbered, because names do not fit into a terminal's columns."""
    title, matrix = named
    yield [title, *(str(number) for number in range(1, len(sites) + 1))]
    for number, (site, row) in enumerate(zip(sites, matrix, strict=True), 1):
        yield [f"{number} {site}", *("-" if value is None else f"{value:.3f}" for value in row)]


def _mean_sd(spread: Mapping[str, Any] | None, times: float = 1) -> str:
    return "-" if spread is None else f"{times * spread['mean']:,.1f} ({times * spread['sd']:,.1f})"


def _all_rows(compared: Mapping[str, Any]) -> list[list[list[str]]]:
    sites = compared["distances"]["sites"]
    return [list(_site_rows(compared)), *(list(_distance_rows(named, sites)) for named in _matrices(compared))]


def rich_tables(compared: Mapping[str, Any]) -> list[Table]:
    """Tables for a terminal: the sites, then the distances between them."""
    tables = []
    for (first, *others), *rows in _all_rows(compared):
        tables.append(terminal_table([first, *(name.replace(" ", "\n") for name in others)], rows))
        tables[-1].columns[0].min_width = 12
    return tables


def markdown(compared: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The tables, their legend and the notes as Markdown."""
    parts = [f"# Sites of {compared['dataset']}\n"]
    for lines in _all_rows(compared):
        head, *rows = [[text.replace("|", "/") for text in line] for line in lines]
        parts.append(markdown_table(head, rows))
    legend = _LEGEND.format(min_cases=compared["min_cases"])
    return "\n".join([*parts, f"{legend}\n", *(f"Note: {note}.\n" for note in notes)])


def figure(compared: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG and SVG by file name: a heat map for each distance, and below them each site's grey values and areas."""
    from matplotlib import rc_context

    matrices, sites = _matrices(compared), compared["sites"]
    height = min(3 + 0.3 * len(sites), 8)
    drawn = new_figure(4.6 * max(len(matrices), 2), height + 1.3 * len(sites))
    halves: Any = drawn.subfigures(2, 1, height_ratios=(height, 1.3 * len(sites)))
    above, below = halves
    for axes, named in zip(above.subplots(1, len(matrices), squeeze=False)[0], matrices, strict=True):
        _heat_map(axes, named, [literal(site["site"]) for site in sites])
    for row, site in zip(below.subplots(len(sites), 2, squeeze=False), sites, strict=True):
        _draw_grey(row[0], site)
        _draw_areas(row[1], site)
    with rc_context({"svg.hashsalt": "fedfms", "svg.fonttype": "none"}):
        return {"sites.png": image(drawn, "png"), "sites.svg": image(drawn, "svg", metadata={"Date": None})}


def _heat_map(axes: Any, named: Named, names: Sequence[str]) -> None:
    import numpy as np

    title, matrix = named
    values = np.array([[np.nan if value is None else value for value in row] for row in matrix], dtype=float)
    known = values[~np.isnan(values)]
    largest = float(known.max()) if known.size else 0.0
    axes.imshow(values, cmap="viridis", vmin=0, vmax=largest or 1.0, interpolation="nearest")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(literal(f"distance in {title}"))
    if len(names) > _WRITTEN_SITES:
        return
    for (row, column), value in np.ndenumerate(values):
        text, colour = ("-", "black") if np.isnan(value) else (f"{value:.2g}", _readable(value, largest))
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")


def _readable(value: float, largest: float) -> str:
    return "white" if value < 0.6 * largest or not largest else "black"


def _draw_grey(axes: Any, site: Mapping[str, Any]) -> None:
    """A step curve in the colour of each channel; in grey if the three are equal."""
    channels = dict(zip(CHANNELS, site["intensity"], strict=True))
    equal = len({tuple(shares) for shares in channels.values()}) == 1
    for name, shares in channels.items():
        axes.stairs(shares, [256 / GREY_BINS * edge for edge in range(GREY_BINS + 1)],
                    color=_GREY if equal else _OUTLINES[name])  # fmt: skip
    axes.set(xlim=(0, 256), ylabel="share", title=literal(f"{site['site']}: grey values"))


def _draw_areas(axes: Any, site: Mapping[str, Any]) -> None:
    """Means of groups of patients, from small to large."""
    for structure in site["structures"]:
        if structure["area"] is not None:
            groups = [100 * value for value in structure["area"]["groups"]]
            places = [100 * (index + 0.5) / len(groups) for index in range(len(groups))]
            axes.plot(places, groups, marker="o", markersize=3, label=literal(structure["name"]))
    axes.set(xlim=(0, 100), ylabel="% of image", title=literal(f"{site['site']}: area, % of patients"))
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(fontsize="small")
