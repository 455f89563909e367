"""A round's rows at the server: a site's numbers, and why an update was not accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def line_of(content: Any, indent: int | None = None) -> str:
    """JSON of what sites sent: what is no plain data must not cost the others' rows; the report tells of it."""
    return json.dumps(content, indent=indent, default=lambda _: "no plain data")


def numbers(report: Any) -> dict[str, Any]:
    """The known keys of a site's report; whatever else it sends is dropped."""
    report = report if isinstance(report, dict) else {}
    keys = ("scores", "train_loss", "seconds", "bytes_down", "bad_images")
    return {key: report.get(key) for key in keys} | {"samples": 0, "bytes_up": 0}


def too_thin(round_: int, rows: Mapping[str, Mapping[str, Any]], accepted: int, needed: int) -> str:
    """That a round has too few updates, with the reason of each site that trains and has none in it."""
    reasons = [_reason(row) for row in rows.values() if not row["held_out"] and not row["accepted"]]
    why = "; ".join(sorted(reasons)) or "the others did not answer"
    return f"round {round_}: {accepted} updates accepted, {needed} needed ({why})"


def _reason(row: Mapping[str, Any]) -> str:
    """A row's reason with its site, which a site's own error names already."""
    site, reason = row["site"], row["reason"]
    return str(reason) if str(reason).startswith(f"site {site}") else f"{site}: {reason}"
