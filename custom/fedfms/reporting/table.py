"""The report's table, for a terminal and for Markdown, and its first line: who took part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedfms.reporting.mixing import mixing_line
from fedfms.reporting.scores import MODES, VOLUME
from fedfms.training.disclosure import MIN_CASES, suppressed_text
from fedfms.units import size_text

_COLUMNS = (
    "site", "structure", "Dice before", "Dice", "IoU", "Dice (fedfms)", "IoU (fedfms)", "images", "empty",
)  # fmt: skip
_OF_VOLUMES = ("Dice (volume)", "IoU (volume)", "volumes")
_UNKNOWN = "-"
_LEGEND = (
    "Dice, IoU: sigmoid > 0.5, mean over images; an image that is empty in truth and prediction is left out and "
    "counted as empty. (fedfms): as the reference code of FedFMS computes them, over all images. before: of the model "
    "of round 0. Means over sites are plain means of the sites' means. best: among the models that the sites received "
    "in the rounds, by the mean of their Dice; the final model, which is made after the last round, is not one of them."
)
_LEGEND_OF_VOLUMES = " (volume): as Dice and IoU, of all slices of a case as one, mean over cases."
_PARTS = {"val": "validation images", "test": "test images", "all": "all images"}


@dataclass(frozen=True)
class Row:
    """Cells of the table, one for each column."""

    cells: tuple[str, ...]
    bold: bool = False


def participation_line(results: Mapping[str, Any]) -> str:
    """One line: whether the run is valid, how many of the sites that train took part in all of its rounds, which, and
    the others with the reasons.
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
    """What the table is of."""
    start = f"from {results['checkpoint']}" if results["checkpoint"] else "from random weights"
    of = results["models"][model]["round"] if model in results["models"] else 0
    name = "last model that the sites scored" if model == "last" else f"{model} model"
    return (
        f"{results['method']} on {results['study']}, {results['backbone']} {start}, seed {results['seed']}: "
        f"{name}, {of} round{'' if of == 1 else 's'}"
    )


def rows(results: Mapping[str, Any], model: str) -> Iterator[Row]:
    """Rows of the table of a model: sites by structure, then means over sites."""
    after, before = results["models"][model], results["before"]
    of = (results["structures"], _columns(results))
    for site, entry in after["sites"].items():
        name = f"{site} (held out)" if entry["held_out"] else site
        yield from _rows_of(name, entry["scores"], before["sites"][site]["scores"], *of)
    for what, key in (("sites that train", "mean"), ("held-out sites", "mean_held_out")):
        mean = after[key]
        if mean["scored"] and mean["sites"] > 1:  # of one site, it would be that site's rows again
            some = "" if mean["scored"] == mean["sites"] else f"{mean['scored']} of the {mean['sites']} "
            yield from _rows_of(f"mean, {some}{what}", mean, after[f"{key}_before"], *of, bold=True)


def _rows_of(
    name: str,
    scores: Mapping[str, Any] | None,
    start: Mapping[str, Any] | None,
    structures: list[str],
    columns: tuple[str, ...],
    *,
    bold: bool = False,
) -> Iterator[Row]:
    """A row a structure and, where there are several, one with their mean."""
    if scores is None:
        yield Row((name, "no scores", *[_UNKNOWN] * (len(columns) - 2)))
        return
    for structure in structures:
        part = {mode: of[structure] for mode, of in scores["by_structure"].items()}
        first = start["by_structure"]["standard"][structure] if start else {}
        yield _row(name, structure, _dice(first, start), part, scores, columns, bold=bold)
    if len(structures) > 1:
        first = start["standard"] if start else {}
        yield _row(name, "mean", _dice(first, start), scores, scores, columns, bold=True)


def _row(
    name: str, structure: str, before: str, part: Mapping[str, Any], scores: Mapping[str, Any],
    columns: tuple[str, ...], *, bold: bool,
) -> Row:  # fmt: skip
    """The row of `part`, {mode: {"dice", "iou", ...}}, of a site's or a mean's scores."""
    cells = {"site": name, "structure": structure, "Dice before": before}
    cells |= {key: _count(part["standard"], key) for key in ("images", "empty")}
    for mode in (*MODES, VOLUME):
        kind = "" if mode == "standard" else f" ({mode})"
        row = part.get(mode, {})
        of = "cases" if mode == VOLUME else "images"
        cells |= {f"Dice{kind}": _dice(row, scores, of), f"IoU{kind}": _number(row.get("iou"))}
    cells["volumes"] = _count(part.get(VOLUME, {}), "images")
    return Row(tuple(cells[column] for column in columns), bold)


def _columns(results: Mapping[str, Any]) -> tuple[str, ...]:
    """The table's columns: those of volumes where a site has such."""
    entries = [entry for model in results["models"].values() for entry in model["sites"].values()]
    there = any(entry["scores"] and VOLUME in entry["scores"] for entry in entries)
    return (*_COLUMNS, *_OF_VOLUMES) if there else _COLUMNS


def rich_table(results: Mapping[str, Any], model: str) -> Table:
    """The table for a terminal. Names come from outside: as `Text`, so that no bracket in them is taken for markup."""
    caption = Text("images: counted; empty: left out, see table.md")
    table = Table(title=Text(title(results, model)), caption=caption, box=box.SIMPLE_HEAD, padding=0)
    for index, column in enumerate(_columns(results)):
        # In 80 columns only the site's name gives way: a number or a structure that is cut says nothing.
        header = column.replace(" ", "\n") if index else column
        table.add_column(
            header, justify="left" if index < 2 else "right", vertical="bottom", no_wrap=index > 0, overflow="fold"
        )
    previous = None
    for row in rows(results, model):
        same = row.cells[0] == previous
        cells = ("", *row.cells[1:]) if same else row.cells
        # Why a number is suppressed does not fit beside the others.
        short = ("suppressed" if cell.startswith("suppressed (") else cell for cell in cells)
        table.add_row(*map(Text, short), style="bold" if row.bold else None)
        previous = row.cells[0]
    return table


def markdown(results: Mapping[str, Any], models: Iterable[str]) -> str:
    """The whole report as Markdown."""
    lines = [f"# {_escape(results['title'] or results['study'])}", "", _escape(participation_line(results)), ""]
    columns = _columns(results)
    for model in models:
        lines += [f"## {_escape(title(results, model))}", "", _line(columns), _line(("---",) * len(columns))]
        lines += [_line(tuple(map(_escape, row.cells))) for row in rows(results, model)] + [""]
    legend = _LEGEND + (_LEGEND_OF_VOLUMES if columns != _COLUMNS else "")
    for paragraph in (scored_on(results), legend, _cost(results), mixing_line(results["mixing"]), *footnotes(results)):
        lines += [_escape(paragraph), ""] if paragraph else []
    return "\n".join(lines)


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """Lines on the overlays and on what was left out."""
    drawn = _drawn(results["overlays"])
    lines = [f"Overlays stay at the sites that drew them: {drawn}."] if drawn else []
    return lines + [f"Note: {note}." for note in results["notes"]]


def _drawn(overlays: Mapping[str, int]) -> str:
    """Where the overlays are: one text for all sites where they differ in the site's folder alone."""
    places = {folder.partition("/")[2] for folder in overlays}
    if len(overlays) > 1 and len(places) == 1 and len(set(overlays.values())) == 1:
        return f"{next(iter(overlays.values()))} in SITE/{places.pop()} of each of {len(overlays)} sites"
    return ", ".join(f"{count} in {folder}" for folder, count in overlays.items())


def scored_on(results: Mapping[str, Any]) -> str:
    """Which images the models were scored on, as the sites say; empty if they do not."""
    kinds: dict[str, set[str]] = {}
    for model in results["models"].values():
        for entry in model["sites"].values():
            if entry["part"]:
                kinds.setdefault("held-out sites" if entry["held_out"] else "sites that train", set()).add(
                    _PARTS[entry["part"]]
                )
    parts = [f"{', '.join(sorted(images))} of the {who}" for who, images in sorted(kinds.items(), reverse=True)]
    return f"Scored on: {'; '.join(parts)}." if parts else ""


def _cost(results: Mapping[str, Any]) -> str:
    parameters, sent = results["parameters"], results["bytes"]
    return (
        f"{parameters['shared']:,} parameters are shared, {size_text(1e6 * parameters['shared_mb'])} a site, round and "
        f"direction; {parameters['trained']:,} trained, {parameters['total']:,} in all. {size_text(sent['total'])} "
        f"travelled in the rounds: {size_text(sent['up'])} up, {size_text(sent['down'])} down."
    )


def _escape(text: str) -> str:
    for character in "\\|<>*`[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _dice(row: Mapping[str, Any], scores: Mapping[str, Any] | None, of: str = "images") -> str:
    """A Dice of the scores, or why it is not told: where `min_cases` rules, none is left out for another reason."""
    if row and row["dice"] is None and scores and scores.get(MIN_CASES):
        return suppressed_text(scores, of)
    return _number(row.get("dice"))


def _count(row: Mapping[str, Any], key: str) -> str:
    """A count of images; of means over structures or sites there is none."""
    if key not in row:
        return ""
    return _UNKNOWN if row[key] is None else str(row[key])


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3f}"
