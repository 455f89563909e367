"""Whether a run is what its study asked for: all its rounds, with the sites that it may not be without.

A run is valid when
- it is complete: every planned round had as many accepted updates as the study needs, and the final model was scored;
- each of the study's required sites was in the last round, of which the final model is, and in at least half of all
  planned rounds.
To miss a few rounds does not make a run not valid; that a site missed them is told on the report's first line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedfms.methods import POOL, training_sites
from fedfms.study import Study


def objections(study: Study, done: int, *, complete: bool, participation: Mapping[str, Any]) -> list[str]:
    """Why a run is not valid, a line each; none if it is.

    Args:
        done: rounds with enough updates.
        participation: {site: {"rounds" (from 0, with an accepted update), ...}}.
    """
    planned, found = study.train.rounds, []
    if not complete:
        found.append("there are no final scores" if done >= planned else f"only {done} of {planned} rounds are done")
    for site in study.federation.required_sites:
        # Data that are pooled are all there, or the pool does not train.
        rounds = participation.get(POOL if training_sites(study) == (POOL,) else site, {}).get("rounds", [])
        if 2 * len(rounds) < planned:
            found.append(f"required {site} took part in {len(rounds)} of {planned} rounds")
        elif planned - 1 not in rounds:
            found.append(f"required {site} was not in the last round, {planned - 1}")
    return found
