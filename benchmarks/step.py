"""One training step of a method, by the trainer that a site uses: forward, loss, backward, optimizer."""

from __future__ import annotations

from typing import Any

from fedfms.report.cost.timing import measure as measure_study
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import outline


def measure(method: str, backbone: str, size_px: int, batch: int, steps: int) -> dict[str, Any]:
    """Median seconds of a step and peak memory in MiB (of the process; of the card where there is one)."""
    study = Study.from_dict(
        {
            "name": "benchmark",
            "method": method,
            "model": {"backbone": backbone, "input_px": size_px},
            "train": {"batch_size": batch},
        }
    )
    timing = measure_study(study, SiteSettings(), steps)
    return {
        "method": method,
        "backbone": backbone,
        "size_px": size_px,
        "batch": batch,
        "path": "plain",
        "dtype": "float32",
        "steps": steps,
        "step_s": round(timing.step_s, 3),
        "peak_mb": timing.peak_mib,
        "trained_parameters": sum(p.numel() for p in outline(study).parameters().values()),
    }
