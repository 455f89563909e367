"""Tables as text: for a terminal, for a log, and as Markdown."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_MARKUP = "\\|<>*_`[]#&~$"


def terminal_table(
    head: Iterable[str], rows: Iterable[Iterable[str]] = (), *, title: str = "", left: int = 1,
    wraps: Sequence[int] = (0,), bottom: bool = True, **options: Any,
) -> Table:  # fmt: skip
    """A table for a terminal. All texts are `Text`: names come from outside, and must not be read as rich's markup.

    Args:
        head: names of the columns; they may have line breaks.
        left: the first columns, aligned left; the others are aligned right.
        wraps: columns that may wrap in a narrow terminal. The others hold numbers, which must not be cut.
        bottom: align the names of the columns at their last line.
        options: of `rich.table.Table`.
    """
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, **{"padding": 0, **options})
    for index, name in enumerate(head):
        table.add_column(
            Text(name), justify="left" if index < left else "right", vertical="bottom" if bottom else "top",
            overflow="fold", no_wrap=index not in wraps,
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def plain_text(content: RenderableType) -> str:
    """What a terminal of 140 columns would show, without styles."""
    buffer = io.StringIO()
    Console(file=buffer, width=140, no_color=True, force_terminal=False).print(content)
    return buffer.getvalue()


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int | None = None) -> str:
    """A table in Markdown. Its texts must not contain an unescaped `|`.

    Args:
        left: the first columns, aligned left; the others are aligned right. None: no alignment.
    """
    rule = ["---" if left is None or index < left else "---:" for index in range(len(head))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def escape(text: str, markup: str = _MARKUP) -> str:
    """`text` on one line, with a backslash before each character that Markdown or HTML may read as markup."""
    return " ".join("".join(f"\\{c}" if c in markup else c for c in text).split())
