"""The number of updates that each aggregation rule needs; the rules are in `fedfms.federation.robust`."""

from collections.abc import Mapping
from typing import Literal

AggregationRule = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum", "norm_clip"]

# rule -> (a, b): to tolerate f Byzantine sites it needs n >= a f + b updates in every round.
AGGREGATION_RULES: Mapping[str, tuple[int, int]] = {
    "mean": (0, 1),
    "median": (2, 1),
    "trimmed_mean": (2, 1),
    "krum": (2, 3),
    "multi_krum": (2, 3),
    "norm_clip": (2, 1),
}


def too_few_updates(rule: str, byzantine: int, updates: int) -> str | None:
    """Why `rule` cannot tolerate that many Byzantine sites with that many updates; None if it can."""
    times, more = AGGREGATION_RULES[rule]
    if updates >= (needed := times * byzantine + more):
        return None
    formula = f"n >= {times}f+{more} = {needed}"
    return f"{rule} needs {formula} updates a round for f = {byzantine} Byzantine sites, and there are {updates}"
