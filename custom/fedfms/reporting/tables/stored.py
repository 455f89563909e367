"""Sheets as JSON, and back: what a page of results is made of when the runs themselves are gone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedfms.reporting.tables.sheets import Field, Sheet


def stored(sheets: Iterable[Sheet], command: str, made: Sequence[tuple[str, str]]) -> str:
    """{"command", "made": {machine and versions}, "sheets": [the fields of each `Sheet`]}."""
    content = {"command": command, "made": dict(made), "sheets": [dataclasses.asdict(sheet) for sheet in sheets]}
    return json.dumps(content, indent=1)


def restored(raw: Mapping[str, Any], title: str) -> Sheet:
    """The sheet of that title in what `stored` wrote, the first where there are several.

    Raises:
        ValueError: there is none.
    """
    for sheet in raw["sheets"]:
        if sheet["title"] == title:
            rows = {part: tuple(tuple(Field(**field) for field in row) for row in sheet[part])
                    for part in ("rows", "foot")}  # fmt: skip
            return Sheet(**{**sheet, **rows, "head": tuple(sheet["head"])})
    raise ValueError(f"no sheet {title!r}: {[sheet['title'] for sheet in raw['sheets']]}")
