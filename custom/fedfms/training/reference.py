"""The in-process reference: a whole federation in one loop, with no FLARE. What a FLARE run must equal to 1e-6."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfms.methods import Tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.site import RoundResult, Site


@dataclass(frozen=True)
class ReferenceRound:
    """A round: the model that the sites received, what each made of it, and what the server made of that."""

    round: int
    received: Tensors
    results: Mapping[str, RoundResult]
    shared: Tensors
    held_out: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def rounds(study: Study, sites: Sequence[str], settings: SiteSettings, folder: Path) -> Iterator[ReferenceRound]:
    """Run the study's rounds over `sites` one after another; each keeps its memory under `folder/<site>`."""
    server = build(study, settings)
    shared: Tensors = server.shared()
    state: Mapping[str, Any] = {}
    held_out = [Site(study, name, settings, folder / name) for name in sites if name in study.held_out]
    training = [Site(study, name, settings, folder / name) for name in sites if name not in study.held_out]
    for round_ in range(study.train.rounds):
        results = {site.name: site.train_round(round_, shared) for site in training}
        scores = {site.name: site.evaluate(shared) for site in held_out}
        combined = server.method.combine([result.update for result in results.values()], state)
        yield ReferenceRound(round_, shared, results, combined.shared, scores)
        shared, state = combined.shared, combined.state


def final_scores(
    study: Study, sites: Sequence[str], settings: SiteSettings, folder: Path, shared: Tensors
) -> dict[str, dict[str, Any]]:
    """How a global model does at each site, as `Site.evaluate` tells it."""
    return {name: Site(study, name, settings, folder / name).evaluate(shared) for name in sites}
