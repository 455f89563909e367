"""Render the tables in `docs/results/*.md` from the JSON files in `docs/results/data`.

A table is between `<!-- table KIND LABEL=FILE ... -->` and `<!-- end -->`; files are relative to the page.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fedfms.reporting.cost.show import VIEWS, View, markdown_rows
from fedfms.reporting.tables.writers import read_sheet, sheet_markdown
from fedfms.reporting.text import markdown_table

PAGES = Path(__file__).parents[1] / "docs" / "results"
_TABLE = re.compile(r"(?P<open><!-- table (?P<what>[^\n]*?) -->\n)(?P<body>.*?)(?P<close><!-- end -->)", re.DOTALL)

Runs = Mapping[str, Any]  # label -> the JSON's content


def render(page: Path) -> str:
    """The page's text with each of its tables rendered again.

    Raises:
        ValueError: a marker with an unknown kind of table, or without files.
        TableError: a file has no sheet with the title.
    """
    return _TABLE.sub(lambda found: _filled(found, page.parent), page.read_text(encoding="utf-8"))


def _filled(found: re.Match[str], folder: Path) -> str:
    kind, *named = shlex.split(found["what"])
    if kind not in KINDS or not all("=" in name for name in named):
        raise ValueError(f"not a table: {found['what']}")
    pairs = (name.split("=", 1) for name in named)
    runs = {label: json.loads((folder / file).read_text(encoding="utf-8")) for label, file in pairs}
    return f"{found['open']}{KINDS[kind](runs)}{found['close']}"


def _by_round(runs: Runs) -> str:
    """Mean Dice of the global model over the training sites' scored images, after 0, 1, ... rounds."""
    columns = [run["curves"]["mean_dice"] for run in runs.values()]
    rows = [[str(n), *map(_score, values)] for n, values in enumerate(zip_longest(*columns))]
    return markdown_table(["rounds", *runs], rows)


def _by_site(runs: Runs) -> str:
    """Dice by site before the first round and of the final model, means over structures."""
    final = {label: run["models"]["final"]["sites"] for label, run in runs.items()}
    before = {label: run["before"]["sites"] for label, run in runs.items()}
    first = next(iter(final.values()))
    header = ["site", "images", *(f"{label}: {when}" for label in runs for when in ("before", "after"))]
    rows = []
    for site, entry in first.items():
        row = [f"{site} (held out)" if entry["held_out"] else site, str(entry["scores"]["images"])]
        for label in runs:
            row += [_score(_dice(models[label].get(site))) for models in (before, final)]
        rows.append(row)
    for what, key in (("mean, sites that train", "mean"), ("mean, held-out sites", "mean_held_out")):
        row = [what, ""]
        for run in runs.values():
            row += [_score(model[key]["standard"]["dice"]) for model in (run["before"], run["models"]["final"])]
        if any(cell != "-" for cell in row[2:]):
            rows.append(row)
    return markdown_table(header, rows)


def _rows(runs: Runs) -> str:
    """The rows of benchmarks, unchanged."""
    measured = [(label, row) for label, run in runs.items() for row in run["rows"]]
    keys = list(dict.fromkeys(key for _, row in measured for key in row))
    rows = [[label, *(_plain(row.get(key)) for key in keys)] for label, row in measured]
    return markdown_table(["", *keys], rows)


def _machine(runs: Runs) -> str:
    """The machines of benchmarks or of `fedfms table`, a line for each different one."""
    made = (run.get("machine") or run["made"] for run in runs.values())
    lines = dict.fromkeys(
        f"Made on {one['processor']} ({one['instructions']}), {one['cores']} cores, Python {one['python']}, torch "
        f"{one['torch']}.\n"
        for one in made
    )
    return "".join(lines)


def _sheets(runs: Runs) -> str:
    """Sheets of a `fedfms table`, each with its caption; the labels are their titles."""
    return "\n".join(sheet_markdown(read_sheet(run, title)) for title, run in runs.items())


def _cost(view: View, runs: Runs) -> str:
    """A table of `fedfms cost` with the rows of all runs."""
    return markdown_rows(view, [row for run in runs.values() for row in run[view.of]])


KINDS: Mapping[str, Callable[[Runs], str]] = {
    "rounds": _by_round, "sites": _by_site, "rows": _rows, "sheet": _sheets, "machine": _machine,
    **{f"cost-{name}": partial(_cost, view) for name, view in VIEWS.items()},
}  # fmt: skip


def _dice(entry: Mapping[str, Any] | None) -> float | None:
    return entry["scores"]["standard"]["dice"] if entry and entry["scores"] else None


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if isinstance(value, int | float) else "-" if value is None else str(value)
