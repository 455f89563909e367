"""Rows of a round's records at the server: a site's numbers, and its rejection reason."""

import json
from collections.abc import Mapping
from typing import Any

_MAX_LINE = 500  # characters of a text from a site
_MAX_VALUE = 65_536  # characters of a value from a site, as JSON
_NOT_PLAIN, _TOO_LARGE = "not plain data", "too much data"
_REPORT_KEYS = ("scores", "train_loss", "seconds", "bytes_down", "unreadable_images")


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON of what sites sent. Data that are not plain are replaced by a text, so that the other rows survive."""
    return json.dumps(content, indent=indent, default=lambda _: _NOT_PLAIN)


def report_columns(report: Any) -> dict[str, Any]:
    """The known keys of a site's report. Other keys, data that are not plain and large data are dropped."""
    report = report if isinstance(report, dict) else {}
    return {key: _plain(report.get(key)) for key in _REPORT_KEYS} | {"samples": 0, "bytes_up": 0}


def one_line(raw: str, limit: int = _MAX_LINE) -> str:
    """A text from a site as one line of a log, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in raw).split())[:limit]


def too_few_text(round_: int, rows: Mapping[str, Mapping[str, Any]], accepted: int, needed: int) -> str:
    """The error of a round with too few updates: the reason of each training site without an accepted update."""
    reasons = [_reason(row) for row in rows.values() if not row["held_out"] and not row["accepted"]]
    why = "; ".join(sorted(reasons)) or "the others did not answer"
    return f"round {round_}: {accepted} updates accepted, {needed} needed ({why})"


def _reason(row: Mapping[str, Any]) -> str:
    """A row's reason with its site; a site's own error names the site already."""
    site, reason = row["site"], row["reason"]
    return str(reason) if str(reason).startswith(f"site {site}") else f"{site}: {reason}"


def _plain(value: Any) -> Any:
    """Rows stay in memory for the whole run and become JSON each round: a site must neither fill nor break them."""
    try:
        return value if len(json.dumps(value)) <= _MAX_VALUE else _TOO_LARGE
    except (TypeError, ValueError, RecursionError):
        return _NOT_PLAIN
