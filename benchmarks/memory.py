"""Live bytes of a training step, counted on torch's meta device (`fedfms.reporting.cost.live`): a row a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.step import ORACLE, PATHS, study_of
from fedfms.reporting.cost.live import live_bytes


def measure(method: str, backbone: str, size_px: int, batch: int, paths: Sequence[str]) -> list[dict[str, Any]]:
    """A row a path, MiB: all that is alive at most in forward and backward, beside the weights; what is left after
    forward; `share` of the plain path's peak, or of the first row's. In float32: torch has no autocast for this device.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        settings = PATHS[path]
        live = live_bytes(study_of(method, backbone, size_px, batch), settings)
        row = {"method": method, "backbone": backbone, "size_px": size_px, "batch": batch}
        row |= {"path": "plain" if settings.attention == "plain" else "fast"}
        row |= {"checkpointing": settings.checkpointing}
        rows.append(row | {"live_mb": round(live.peak / 2**20, 1), "kept_mb": round(live.kept / 2**20, 1)})
    oracle = rows[list(paths).index(ORACLE[0]) if ORACLE[0] in paths else 0]["live_mb"]
    return [row | {"share": round(row["live_mb"] / oracle, 3)} for row in rows]
