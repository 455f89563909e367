"""A round's rows at the server: a site's numbers, and why an update was not accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LINE_CHARACTERS = 500
_VALUE_CHARACTERS = 65_536
_NOT_PLAIN, _TOO_MUCH = "no plain data", "too much data"


def line_of(content: Any, indent: int | None = None) -> str:
    """JSON of what sites sent: what is no plain data must not cost the others' rows; the report tells of it."""
    return json.dumps(content, indent=indent, default=lambda _: _NOT_PLAIN)


def numbers(report: Any) -> dict[str, Any]:
    """The known keys of a site's report; whatever else it sends is dropped, and what is no plain data or too much."""
    report = report if isinstance(report, dict) else {}
    keys = ("scores", "train_loss", "seconds", "bytes_down", "unreadable_images")
    return {key: _plain(report.get(key)) for key in keys} | {"samples": 0, "bytes_up": 0}


def one_line(raw: str, most: int = _LINE_CHARACTERS) -> str:
    """A text that a site may have chosen, as one line of a log, without what moves a terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in raw).split())[:most]


def _plain(value: Any) -> Any:
    """Rows are kept for the whole run and written as JSON each round: no site may fill them, or break them for all."""
    try:
        return value if len(json.dumps(value)) <= _VALUE_CHARACTERS else _TOO_MUCH
    except (TypeError, ValueError, RecursionError):
        return _NOT_PLAIN


def too_thin(round_: int, rows: Mapping[str, Mapping[str, Any]], accepted: int, needed: int) -> str:
    """That a round has too few updates, with the reason of each site that trains and has none in it."""
    reasons = [_reason(row) for row in rows.values() if not row["held_out"] and not row["accepted"]]
    why = "; ".join(sorted(reasons)) or "the others did not answer"
    return f"round {round_}: {accepted} updates accepted, {needed} needed ({why})"


def _reason(row: Mapping[str, Any]) -> str:
    """A row's reason with its site, which a site's own error names already."""
    site, reason = row["site"], row["reason"]
    return str(reason) if str(reason).startswith(f"site {site}") else f"{site}: {reason}"
