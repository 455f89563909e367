"""One training step of a method, by the trainer that a site uses: forward, loss, backward, Adam."""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

import torch

from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.trainer import Trainer


def measure(method: str, backbone: str, size_px: int, batch: int, steps: int) -> dict[str, Any]:
    """Median seconds of a step and peak memory in MiB (of the process; of the card where there is one)."""
    study = Study.from_dict(
        {"name": "benchmark", "method": method, "model": {"backbone": backbone, "input_px": size_px}}
    )
    built = build(study, SiteSettings())
    device = next(built.model.parameters()).device
    trainer = Trainer(built, study.train, study.structure_names)
    optimizer = trainer.optimizer(0)
    images = torch.rand(batch, 3, size_px, size_px)
    masks = (torch.rand(batch, 1, built.model.mask_px, built.model.mask_px) > 0.5).float()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        trainer.epoch([{"image": images, "label": masks}], optimizer, {}, cached=False)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    card = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if card else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "method": method,
        "backbone": backbone,
        "size_px": size_px,
        "batch": batch,
        "path": "plain",
        "dtype": "float32",
        "steps": steps,
        "step_s": round(statistics.median(seconds), 3),
        "peak_mb": round(peak / 2**20),
        "trained_parameters": sum(p.numel() for p in built.model.parameters() if p.requires_grad),
    }
