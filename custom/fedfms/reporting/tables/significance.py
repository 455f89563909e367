"""Whether a federated method differs from its centralised twin: Wilcoxon's signed-rank test over images.

The unit is an image: its score is the mean over the structures and seeds in which both methods scored it.
Images without a difference are left out (Wilcoxon's own way), ties share their mean rank. The p-value is two-sided:
exact up to 50 differences without ties, else the normal approximation with the variance corrected for ties and no
correction for continuity. Holm's correction is over the methods that are compared, by model, mode and site.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedfms.methods import METHODS, centralised_counterpart, make_method
from fedfms.reporting.tables.summary import Block

FEWEST = 6  # differences: of 5, no order of signs gives p below 0.05
EXACT = 50
METRIC = "dice"
POOLED = ""  # in place of a site: all of them together
_DECIMALS = 12  # means of equal numbers differ in their last bits, and would be neither zeros nor ties
_Scores = dict[str, dict[tuple[int, str], float]]  # image -> seed and structure -> score


@dataclass(frozen=True)
class PairedTest:
    """A line of the table against its twin at a site, or at all of them (`POOLED`).

    `difference`: mean over images of federated minus centralised; `p` and `holm` are None with a `reason`.
    """

    line: tuple[str, str]
    twin: tuple[str, str]
    mode: str
    site: str
    images: int = 0
    differing: int = 0
    difference: float | None = None
    p: float | None = None
    holm: float | None = None
    how: str = ""  # exact | approximate
    reason: str = ""


def paired_tests(block: Block, model: str = "final") -> list[PairedTest]:
    """Every federated line that has a twin among the lines, by mode and site, then pooled over the sites."""
    pairs = [(line, other) for line in block.lines if (other := twin_line(block, line)) is not None]
    tests = []
    for mode in (mode for mode in block.modes if mode != "volume"):
        sites = {pair: {site: _differences(block, *pair, site, model, mode) for site in block.sites} for pair in pairs}
        for site in (*block.sites, POOLED):
            family = []
            for pair, by_site in sites.items():
                values = by_site[site] if site else [value for each in by_site.values() for value in each]
                family.append(signed_rank(PairedTest(*pair, mode, site), values))
            tests += holm(family)
    return tests


def twin_line(block: Block, line: tuple[str, str]) -> tuple[str, str] | None:
    """The centralised line that trains the same model: of the same variant if there is one, else as it is.

    None where there is none, or where its model section is another.
    """
    cells = block.of_line(line)
    if not cells or cells[0].study.method not in METHODS or not cells[0].traffic.get("shared", 1):
        return None  # what shares nothing is no federation
    study = cells[0].study
    name = centralised_counterpart(make_method(study.method, study.method_options))
    for variant in dict.fromkeys((line[1], "")):
        others = block.of_line((name, variant)) if name else []
        if others and others[0].study.model == study.model:
            return others[0].key.line
    return None


def signed_rank(test: PairedTest, values: Sequence[float]) -> PairedTest:
    """`test` with its result, of the paired differences `values`."""
    from scipy.stats import wilcoxon

    differing = [value for value in values if value != 0]
    mean = statistics.fmean(values) if values else None
    test = replace(test, images=len(values), differing=len(differing), difference=mean)
    if len(differing) < FEWEST:
        what = f"{len(values)} images scored by both" if len(values) < FEWEST else f"{len(differing)} differences"
        return replace(test, reason=f"{what}, the test needs {FEWEST}")
    tied = len({abs(value) for value in differing}) < len(differing)
    how = "approx" if tied or len(differing) > EXACT else "exact"
    p = float(wilcoxon(differing, method=how, correction=False).pvalue)
    return replace(test, p=p, holm=p, how="exact" if how == "exact" else "approximate")


def holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests with p-values corrected for their number (Holm, 1979): step down, never falling, at most 1."""
    made = sorted((i for i, test in enumerate(tests) if test.p is not None), key=lambda i: (tests[i].p, i))
    out, largest = list(tests), 0.0
    for rank, i in enumerate(made):
        largest = min(1.0, max(largest, (len(made) - rank) * (tests[i].p or 0.0)))
        out[i] = replace(tests[i], holm=largest)
    return out


def _differences(
    block: Block, line: tuple[str, str], other: tuple[str, str], site: str, model: str, mode: str
) -> list[float]:
    """Federated minus centralised of each image that both scored, in the order of the images' keys."""
    scores, others = (_scores(block, each, site, model, mode) for each in (line, other))
    values = []
    for key in sorted(scores.keys() & others.keys()):
        both = sorted(scores[key].keys() & others[key].keys())
        if both:
            mine, theirs = (statistics.fmean(of[key][place] for place in both) for of in (scores, others))
            values.append(round(mine - theirs, _DECIMALS))
    return values


def _scores(block: Block, line: tuple[str, str], site: str, model: str, mode: str) -> _Scores:
    scores: _Scores = defaultdict(dict)
    for seed in block.seeds:
        cell = block.cell(line, seed, site)
        for image in cell.images.get((model, site), ()) if cell else ():
            for structure, told in image.scores.get(mode, {}).items():
                value = told[METRIC]
                if value is not None:
                    scores[image.key][seed, structure] = value
    return scores
