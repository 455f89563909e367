"""Live bytes of a training step by path, counted on torch's meta device (`fedfms.reporting.cost.step`)."""

from collections.abc import Sequence
from typing import Any

from benchmarks.step import ORACLE, PATHS, make_study
from fedfms.reporting.cost.step import live_bytes


def measure(method: str, backbone: str, size_px: int, batch: int, paths: Sequence[str]) -> list[dict[str, Any]]:
    """One row per path, in float32, because the meta device has no autocast.

    `live_mb`: maximum of forward and backward pass in MiB, without the weights. `retained_mb`: after the forward pass.
    `share`: of the plain path's maximum, or of the first row's.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        settings = PATHS[path]
        live = live_bytes(make_study(method, backbone, size_px, batch), settings)
        rows.append({
            "method": method, "backbone": backbone, "size_px": size_px, "batch": batch,
            "path": "plain" if settings.attention == "plain" else "fast",
            "checkpointing": settings.gradient_checkpointing,
            "live_mb": round(live.peak / 2**20, 1), "retained_mb": round(live.after_forward / 2**20, 1),
        })  # fmt: skip
    oracle = rows[list(paths).index(ORACLE[0]) if ORACLE[0] in paths else 0]["live_mb"]
    return [row | {"share": round(row["live_mb"] / oracle, 3)} for row in rows]
