"""Helpers for tests of methods: a tiny federation on the phantom, and parameter counts of ViT-B."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fedfms.federation.inprocess import CompletedRound, rounds
from fedfms.methods import Layout, Partition, Tensors, make_method
from fedfms.models import build_model
from fedfms.reporting.cost.traffic import Traffic, plan_traffic
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, ModelSpec, Study, load_study

ROOT = Path(__file__).parents[2]
PHANTOM = STUDIES / "phantom.yaml"
SITES = ("a", "b")
SMALL = (
    "data.phantom_images=4", "data.phantom_px=64", "data.augment=none", "train.local_epochs=1", "train.batch_size=2",
    "model.input_px=64", "held_out=[]", "federation.min_cases=1",
)  # fmt: skip


def study(method: str, *overrides: str, rounds: int = 2, options: Mapping[str, Any] | None = None) -> Study:
    """A phantom study so small that a round takes a fraction of a second."""
    overrides += tuple(f"method_options.{name}={value}" for name, value in (options or {}).items())
    return load_study(PHANTOM, method=method, overrides=[*SMALL, f"train.rounds={rounds}", *overrides])


def run(of: Study, folder: Path, stop_after: int | None = None) -> list[CompletedRound]:
    """Run the study's rounds in one process: all, or up to `stop_after` of them; another call resumes."""
    return list(islice(rounds(of, of.sites or SITES, SiteSettings(), folder), stop_after))


def same(one: Tensors, other: Tensors) -> bool:
    """Whether names and bits are equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_extended_run_is_identical(method: str, folder: Path, *overrides: str) -> list[CompletedRound]:
    """Assert that two rounds and a third one from disk equal three rounds in one run; return the latter."""
    run(study(method, *overrides, rounds=2), folder / "stopped")
    last = run(study(method, *overrides, rounds=3), folder / "stopped")
    whole = run(study(method, *overrides, rounds=3), folder / "whole")
    assert [r.round for r in last] == [2]
    assert same(last[0].server.shared, whole[2].server.shared)
    for site in SITES:
        assert same(last[0].results[site].update.tensors, whole[2].results[site].update.tensors)
    assert last[0].server.notes == whole[2].server.notes
    return whole


def assert_resumed_run_is_identical(of: Study, folder: Path) -> list[CompletedRound]:
    """Assert that a run resumed after its first round equals an uninterrupted one; return the latter's rounds.

    For methods that depend on `train.rounds`, whose runs cannot be extended.
    """
    run(of, folder / "stopped", stop_after=1)
    resumed, whole = run(of, folder / "stopped"), run(of, folder / "whole")
    assert [r.round for r in resumed] == [r.round for r in whole][1:]
    assert same(resumed[-1].server.shared, whole[-1].server.shared)
    return whole


def vit_b(method: str, structures: int = 2, **options: object) -> tuple[Partition, dict[str, int]]:
    """The method's partition of ViT-B at 1024 px, and the number of elements of each parameter."""
    made = make_method(method, options)
    with torch.device("meta"):
        model = build_model(ModelSpec(backbone="vit_b"), structures, adapters=made.adapters, seed=0)
    layout = Layout.of(model)
    made.bind(layout)
    return made.partition(layout), {name: p.numel() for name, p in model.named_parameters()}


def card_states(method: str, parameters: int) -> bool:
    """Whether the method's card states this number of parameters, and their size in float32 in MB."""
    return re.search(rf"\b{parameters:,}\b[^\n]*\b{parameters * 4 / 1e6:.1f} MB", card(method)) is not None


def traffic(method: str, rounds: int) -> Traffic:
    """Traffic of the polyp study at the paper's size (ViT-B at 1024 px, one structure) with this method."""
    return plan_traffic(
        load_study(STUDIES / "polyp.yaml", method=method, preset="paper", overrides=[f"train.rounds={rounds}"])
    )


def card(method: str) -> str:
    """The text of the method's card."""
    return (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
