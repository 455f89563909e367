"""Sheets as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedfms.tables.sheets import BEST, SECOND, Field, Sheet

_SPECIAL = "\\|<>*_`[]#&~$"


def markdown_tables(sheets: Iterable[Sheet], *, level: int = 3) -> str:
    """Each sheet as a heading, its caption and a table; best bold, second underlined."""
    parts = []
    for sheet in sheets:
        rule = ["---"] * sheet.names + ["---:"] * (len(sheet.head) - sheet.names)
        lines = [_line(map(escape, sheet.head)), _line(rule)]
        lines += [_line(map(_field, row)) for row in (*sheet.rows, *sheet.foot)]
        parts.append(f"{'#' * level} {escape(sheet.title)}\n\n{escape(sheet.caption)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


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
