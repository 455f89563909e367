"""Sheets for a terminal: 80 columns are enough, and no number is cut."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fedfms.reporting.tables.sheets import BEST, SECOND, Field, Sheet

_WIDTH = 79
_GAP = 2  # between columns
_HEAD = 11  # a column's name is folded at so many characters
_STYLES = {BEST: "bold", SECOND: "underline"}
_Column = tuple[str, Sequence[Field]]


def turned(sheet: Sheet) -> Iterator[Table]:
    """The sheet with its columns as rows, for there are many with long names; in several tables if it is wide.

    Captions are left out. Names come from outside: as `Text`, so that no bracket is taken for markup.
    """
    names = sheet.head[sheet.names :]
    rows = [*sheet.rows, *sheet.foot]
    columns = [(" ".join(field.text for field in row[: sheet.names]), row[sheet.names :]) for row in rows]
    first = max(map(len, names)) + _GAP
    for number, group in enumerate(_groups(columns, _WIDTH - first, 1 if sheet.sorts else 3)):
        table = _table(sheet.title if number == 0 else "")
        table.add_column(Text(""), no_wrap=True)
        for name, _ in group:
            table.add_column(_head(name), justify="right", no_wrap=True, vertical="bottom")
        for index, name in enumerate(names):
            table.add_row(Text(name), *(_text(fields[index]) for _, fields in group))
        yield table


def rich_table(sheet: Sheet) -> Table:
    """The sheet as it is, without its caption; of a row only the first and the last field give way."""
    table = _table(sheet.title)
    for index, name in enumerate(sheet.head):
        gives_way = index == 0 or index == len(sheet.head) - 1
        side = "left" if index < sheet.names else "right"
        table.add_column(_head(name), justify=side, no_wrap=not gives_way, overflow="fold")  # type: ignore[arg-type]
    for row in (*sheet.rows, *sheet.foot):
        table.add_row(*map(_text, row))
    return table


def _groups(columns: Sequence[_Column], room: int, together: int) -> Iterator[list[_Column]]:
    """As many columns at a time as there is room for, and no fewer than belong `together`."""
    group: list[_Column] = []
    left = room
    for start in range(0, len(columns), together):
        part = columns[start : start + together]
        width = sum(map(_width, part))
        if group and width > left:
            yield group
            group, left = [], room
        group += part
        left -= width
    if group:
        yield group


def _width(column: _Column) -> int:
    name, fields = column
    return _GAP + max(*(len(_text(field)) for field in fields), *map(len, _fold(name)), 1)


def _table(title: str) -> Table:
    head = Text(title) if title else None
    return Table(title=head, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _fold(name: str) -> list[str]:
    return textwrap.wrap(name, _HEAD) or [""]


def _head(name: str) -> Text:
    return Text("\n".join(_fold(name)))


def _text(field: Field) -> Text:
    return Text(field.text.replace(" ± ", "±"), style=_STYLES.get(field.mark, ""))
