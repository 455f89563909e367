"""Presets: a training schedule with its backbone, which replaces the study's."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # FedFMS (MICCAI 2024), section 4: ViT-B at 1024, batch 6, Adam 1e-4, 100 rounds of one local epoch, no prompts.
    "paper": {
        "model": {"backbone": "vit_b", "input_px": 1024, "prompt": "none"},
        "train": {"rounds": 100, "local_epochs": 1, "batch_size": 6, "lr": 1e-4, "loss": "bce", "pos_weight": 2.0},
    },
    # A pre-trained TinyViT SAM at 256: hours on a CPU where the paper's ViT-B takes weeks.
    "lite": {
        "model": {"backbone": "tiny_vit", "input_px": 256},
        "train": {"rounds": 20, "local_epochs": 1, "batch_size": 4, "lr": 1e-3},
    },
    # Of the demo: a small network, small images.
    "tiny": {
        "model": {"backbone": "vit_tiny", "input_px": 128},
        "train": {"rounds": 8, "local_epochs": 2, "batch_size": 8, "lr": 1e-3},
    },
}
