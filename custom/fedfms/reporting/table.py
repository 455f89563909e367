"""The table of a run's report, for a terminal and as Markdown, and the report's first line, on participation."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from rich.table import Table
from rich.text import Text

from fedfms.reporting.mixing import mixing_line
from fedfms.reporting.scores import ALL_MODES, VOLUME
from fedfms.reporting.text import escape, markdown_table, terminal_table
from fedfms.training.disclosure import MIN_CASES, suppressed_text
from fedfms.units import size_text

_COLUMNS = (
    "site", "structure", "Dice before", "Dice", "IoU", "Dice (fedfms)", "IoU (fedfms)", "images", "empty",
)  # fmt: skip
_VOLUME_COLUMNS = ("Dice (volume)", "IoU (volume)", "volumes")
_UNKNOWN = "-"
_LEGEND = (
    "Dice, IoU: sigmoid > 0.5, mean over images. An image that is empty in truth and prediction is excluded and "
    "counted as empty. (fedfms): as the reference code of FedFMS computes them, over all images. before: the model of "
    "round 0. Means over sites are plain means of the sites' means. best: of the models that the sites received in the "
    "rounds, the one with the highest mean Dice; this excludes the final model, which results from the last round."
)
_VOLUME_LEGEND = " (volume): Dice and IoU of all slices of a case together, mean over cases."
_PARTS = {"val": "validation images", "test": "test images", "all": "all images"}

Row = tuple[Mapping[str, str], bool]  # text by column, missing if unknown; whether it is bold
_escape = partial(escape, markup="\\|<>*`[]")


def participation_line(results: Mapping[str, Any]) -> str:
    """One line: whether the run is valid, how many and which training sites took part in all rounds, and why the others
    missed rounds.
    """
    rounds = results["rounds"]
    all_rounds, gaps, held_out = [], [], []
    for site, entry in results["participation"].items():
        if entry["held_out"]:
            held_out.append(site)
        elif entry["missed"]:
            count = len(entry["missed"])
            gaps.append(f"{site} missed {count} of {count + len(entry['rounds'])} ({_reasons(entry['missed'])})")
        elif entry["rounds"]:
            all_rounds.append(site)
    counted = f"{len(all_rounds)} of {len(results['participation']) - len(held_out)} sites"
    parts = [f"{counted} in {rounds['done']} of {rounds['planned']} rounds"]
    parts.append(f"in all of them: {', '.join(all_rounds) or 'no site'}")
    if held_out:
        parts.append(f"held out: {', '.join(held_out)}")
    parts += gaps
    if results["resumed"]:
        parts.append(f"resumed after {_ranges(results['resumed'])} rounds")
    if results["valid"]:
        return f"valid: {'; '.join(parts)}"
    return f"NOT VALID: {'; '.join([*results['objections'], *parts])}"


def _reasons(missed: Mapping[str, str]) -> str:
    """`{"1": "late", "2": "late", "4": "NaN"}` -> `round 1-2: late; round 4: NaN`."""
    by_reason: dict[str, list[int]] = {}
    for round_, reason in missed.items():
        by_reason.setdefault(reason, []).append(int(round_))
    return "; ".join(f"round {_ranges(rounds)}: {reason}" for reason, rounds in by_reason.items())


def _ranges(numbers: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def title(results: Mapping[str, Any], model: str) -> str:
    """The table's title: method, study, initial weights, model."""
    start = f"from {results['checkpoint']}" if results["checkpoint"] else "from random weights"
    of = results["models"][model]["round"] if model in results["models"] else 0
    name = "last model that the sites scored" if model == "last" else f"{model} model"
    return (
        f"{results['method']} on {results['study']}, {results['backbone']} {start}, seed {results['seed']}: "
        f"{name}, {of} round{'' if of == 1 else 's'}"
    )


def rows(results: Mapping[str, Any], model: str) -> Iterator[Row]:
    """Rows of the table of a model, and whether they are bold: for each site its structures, then means over sites."""
    after, before, structures = results["models"][model], results["before"], results["structures"]
    for site, entry in after["sites"].items():
        name = f"{site} (held out)" if entry["held_out"] else site
        yield from _rows_of(name, entry["scores"], before["sites"][site]["scores"], structures)
    for what, key in (("sites that train", "mean"), ("held-out sites", "mean_held_out")):
        mean = after[key]
        if mean["scored"] and mean["sites"] > 1:  # the mean of one site would repeat that site's rows
            some = "" if mean["scored"] == mean["sites"] else f"{mean['scored']} of the {mean['sites']} "
            for row, _ in _rows_of(f"mean, {some}{what}", mean, after[f"{key}_before"], structures):
                yield row, True


def _rows_of(
    name: str, scores: Mapping[str, Any] | None, before: Mapping[str, Any] | None, structures: list[str]
) -> Iterator[Row]:
    """A row per structure and, for several structures, one with their mean."""
    if scores is None:
        yield {"site": name, "structure": "no scores"}, False
        return
    parts = [(structure, _part(scores, structure), before and _part(before, structure)) for structure in structures]
    for structure, part, first in [*parts, ("mean", scores, before)] if len(structures) > 1 else parts:
        row = {"site": name, "structure": structure}
        row["Dice before"] = _dice(first["standard"], before) if first else _UNKNOWN
        row |= {key: _count(part["standard"], key) for key in ("images", "empty")}
        for mode in (mode for mode in ALL_MODES if mode in part):
            kind = "" if mode == "standard" else f" ({mode})"
            dice = _dice(part[mode], scores, "cases" if mode == VOLUME else "images")
            row |= {f"Dice{kind}": dice, f"IoU{kind}": _number(part[mode]["iou"])}
        row["volumes"] = _count(part.get(VOLUME, {}), "images")
        yield row, part is scores


def _part(scores: Mapping[str, Any], structure: str) -> Mapping[str, Any]:
    return {mode: rows[structure] for mode, rows in scores["by_structure"].items()}


def _columns(results: Mapping[str, Any]) -> tuple[str, ...]:
    """The table's columns; those of volumes only if a site has scores by volume."""
    entries = [entry for model in results["models"].values() for entry in model["sites"].values()]
    has_volumes = any(entry["scores"] and VOLUME in entry["scores"] for entry in entries)
    return (*_COLUMNS, *_VOLUME_COLUMNS) if has_volumes else _COLUMNS


def rich_table(results: Mapping[str, Any], model: str) -> Table:
    """The table for a terminal. In 80 columns only the site's name wraps."""
    columns = _columns(results)
    head = [columns[0], *(column.replace(" ", "\n") for column in columns[1:])]
    caption = Text("images: counted; empty: excluded, see table.md")
    table = terminal_table(head, title=title(results, model), left=2, caption=caption)
    previous = None
    for row, bold in rows(results, model):
        site, *cells = (row.get(column, _UNKNOWN) for column in columns)
        # The reason of a suppressed number is too long for a column.
        cells = ["suppressed" if cell.startswith("suppressed (") else cell for cell in cells]
        table.add_row(Text("" if site == previous else site), *map(Text, cells), style="bold" if bold else None)
        previous = site
    return table


def report_markdown(results: Mapping[str, Any], models: Iterable[str]) -> str:
    """The whole report as Markdown."""
    columns = _columns(results)
    legend = _LEGEND + (_VOLUME_LEGEND if columns != _COLUMNS else "")
    parts = [f"# {_escape(results['title'] or results['study'])}\n", f"{_escape(participation_line(results))}\n"]
    for model in models:
        cells = ([_escape(row.get(column, _UNKNOWN)) for column in columns] for row, _ in rows(results, model))
        parts += [f"## {_escape(title(results, model))}\n", markdown_table(columns, cells)]
    paragraphs = (scored_on(results), legend, _cost(results), mixing_line(results["mixing"]), *footnotes(results))
    return "\n".join([*parts, *(f"{_escape(paragraph)}\n" for paragraph in paragraphs if paragraph)])


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """Lines on the overlays and on what was dropped."""
    drawn = _drawn(results["overlays"])
    lines = [f"Overlays stay at the sites that drew them: {drawn}."] if drawn else []
    return lines + [f"Note: {note}." for note in results["notes"]]


def _drawn(overlays: Mapping[str, int]) -> str:
    """Where the overlays are: one text for all sites if they differ in the site's folder only."""
    places = {folder.partition("/")[2] for folder in overlays}
    if len(overlays) > 1 and len(places) == 1 and len(set(overlays.values())) == 1:
        return f"{next(iter(overlays.values()))} in SITE/{places.pop()} of each of {len(overlays)} sites"
    return ", ".join(f"{count} in {folder}" for folder, count in overlays.items())


def scored_on(results: Mapping[str, Any]) -> str:
    """Which images the models were scored on, as the sites report it; empty if no site does."""
    entries = [entry for model in results["models"].values() for entry in model["sites"].values() if entry["part"]]
    parts = []
    for who, held_out in (("sites that train", False), ("held-out sites", True)):
        if images := sorted({_PARTS[entry["part"]] for entry in entries if entry["held_out"] == held_out}):
            parts.append(f"{', '.join(images)} of the {who}")
    return f"Scored on: {'; '.join(parts)}." if parts else ""


def _cost(results: Mapping[str, Any]) -> str:
    parameters, sent = results["parameters"], results["bytes"]
    return (
        f"{parameters['shared']:,} parameters are shared, {size_text(1e6 * parameters['shared_mb'])} a site, round and "
        f"direction; {parameters['trained']:,} trained, {parameters['total']:,} in all. {size_text(sent['total'])} "
        f"were sent in the rounds: {size_text(sent['up'])} up, {size_text(sent['down'])} down."
    )


def _dice(row: Mapping[str, Any], scores: Mapping[str, Any] | None, of: str = "images") -> str:
    """A Dice of the scores, or that it is suppressed: with `min_cases`, that is the only reason for a missing one."""
    if row["dice"] is None and scores and scores.get(MIN_CASES):
        return suppressed_text(scores, of)
    return _number(row["dice"])


def _count(row: Mapping[str, Any], key: str) -> str:
    """A count of images; empty for means over structures or sites, which have no count."""
    if key not in row:
        return ""
    return _UNKNOWN if row[key] is None else str(row[key])


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3f}"
