"""A tiny phantom study of three sites, run in one process: what tests of single methods share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedfms.methods import Layout, Partition, Tensors, make_method
from fedfms.models import build_model
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study, load_study
from fedfms.training.reference import ReferenceRound, rounds

SITES = ("a", "b", "c")
_STUDY = Path(__file__).parents[2] / "jobs" / "studies" / "phantom.yaml"
_SMALL = (
    "data.phantom_images=4", "data.phantom_px=64", "model.input_px=64", "train.local_epochs=1", "train.batch_size=2",
)  # fmt: skip


def study_of(method: str, options: Mapping[str, Any], n_rounds: int) -> Study:
    """A phantom study of a few images and `n_rounds` rounds."""
    overrides = [*_SMALL, f"train.rounds={n_rounds}", *(f"method_options.{k}={v}" for k, v in options.items())]
    return load_study(_STUDY, method=method, overrides=overrides)


def run(study: Study, folder: Path, stop_after: int | None = None) -> list[ReferenceRound]:
    """Its rounds; `stop_after` so many of them the run is left, to be gone on with by another call."""
    done = []
    for round_ in rounds(study, SITES, SiteSettings(), folder):
        done.append(round_)
        if len(done) == stop_after:
            break
    return done


def same(one: Tensors, other: Tensors) -> bool:
    """The same names in the same order, and the same bits."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def vit_b(method: str, options: Mapping[str, Any], n_structures: int = 1) -> tuple[Partition, dict[str, int]]:
    """What becomes of SAM ViT-B's tensors, and each one's count of parameters; no memory is taken for them."""
    made = make_method(method, options)
    with torch.device("meta"):
        model = build_model(ModelSpec(backbone="vit_b"), n_structures, adapters=made.adapters, seed=0)
    return made.partition(Layout.of(model)), {name: p.numel() for name, p in model.named_parameters()}
