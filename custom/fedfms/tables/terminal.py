"""Sheets for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from fedfms.tables.sheets import BEST, SECOND, Field, Sheet

_STYLES = {BEST: "bold", SECOND: "underline"}


def rich_table(sheet: Sheet) -> Table:
    """The sheet without its caption. Names come from outside: as `Text`, so that no bracket is taken for markup."""
    table = Table(title=Text(sheet.title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for index, name in enumerate(sheet.head):
        names = index < sheet.names
        table.add_column(Text(name), justify="left" if names else "right", vertical="top", overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(_text, row))
    if sheet.foot:
        table.add_section()
    for row in sheet.foot:
        table.add_row(*map(_text, row), style="dim")
    return table


def _text(field: Field) -> Text:
    # With many sites there is room for a number only: the spread goes below it.
    return Text(field.text.replace(" ± ", "\n±"), style=_STYLES.get(field.mark, ""), no_wrap=False)
