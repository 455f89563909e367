"""Sheets as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedfms.reporting.tables.sheets import BEST, SECOND, Field, Sheet

_SPECIAL = "\\|<>*_`[]#&~$"


def markdown_tables(sheets: Iterable[Sheet], *, level: int = 3) -> str:
    """Each sheet as a heading, its caption and a table."""
    return "\n".join(f"{'#' * level} {escape(sheet.title)}\n\n{markdown_table(sheet)}" for sheet in sheets)


def markdown_table(sheet: Sheet) -> str:
    """The sheet's caption and its table; best bold, second underlined."""
    rule = ["---"] * sheet.names + ["---:"] * (len(sheet.head) - sheet.names)
    lines = [_line(map(escape, sheet.head)), _line(rule)]
    lines += [_line(map(_field, row)) for row in (*sheet.rows, *sheet.foot)]
    return f"{escape(sheet.caption)}\n\n" + "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """`text` with nothing in it that Markdown or HTML reads, on one line."""
    for character in _SPECIAL:
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _field(field: Field) -> str:
    text = escape(field.text)
    return {BEST: f"**{text}**", SECOND: f"<u>{text}</u>"}.get(field.mark, text)


def _line(fields: Iterable[str] | Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"
