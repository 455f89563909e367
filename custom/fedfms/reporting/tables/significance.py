"""Whether a federated method differs from its centralised counterpart: Wilcoxon's signed-rank test over images.

The unit is an image. Its score is the mean over the structures and seeds in which both methods scored it. Images
without a difference are dropped (Wilcoxon's own way), ties share their mean rank. The p-value is two-sided: exact for
up to 50 differences without ties, otherwise the normal approximation, with the variance corrected for ties and without
a continuity correction. Holm's correction is over the compared methods, by model, mode and site.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedfms.methods import METHODS, centralised_counterpart, make_method
from fedfms.reporting.tables.summary import Block, Line
from fedfms.training.metrics import VOLUME

MIN_DIFFERENCES = 6  # with 5, no order of signs gives p below 0.05
MAX_EXACT = 50
METRIC = "dice"
POOLED = ""  # in place of a site: all sites together
_DECIMALS = 12  # means of equal numbers differ in their last bits, and would be neither zeros nor ties
_Scores = dict[str, dict[tuple[int, str], float]]  # image -> seed and structure -> score


@dataclass(frozen=True)
class PairedTest:
    """A line of the table against its centralised counterpart, at a site or at all sites (`POOLED`).

    `difference`: mean over images of federated minus centralised. `p` and `holm` are None if there is a `reason`.
    """

    line: Line
    counterpart: Line
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
    """Tests of every federated line with a counterpart among the lines, by mode and site, then over all sites."""
    pairs = [(line, other) for line in block.lines if (other := counterpart_line(block, line)) is not None]
    tests = []
    for mode in (mode for mode in block.modes if mode != VOLUME):
        sites = {pair: {site: _differences(block, *pair, site, model, mode) for site in block.sites} for pair in pairs}
        for site in (*block.sites, POOLED):
            family = []
            for pair, by_site in sites.items():
                values = by_site[site] if site else [value for each in by_site.values() for value in each]
                family.append(signed_rank(PairedTest(*pair, mode, site), values))
            tests += holm(family)
    return tests


def counterpart_line(block: Block, line: Line) -> Line | None:
    """The centralised line that trains the same model: of the same variant, or else without a variant.

    None if there is none, or if its model section differs.
    """
    runs = block.of_line(line)
    if not runs or runs[0].study.method not in METHODS or not runs[0].result.traffic.get("shared", 1):
        return None  # a method that shares nothing is not federated
    study = runs[0].study
    name = centralised_counterpart(make_method(study.method, study.method_options))
    for variant in dict.fromkeys((line[1], "")):
        others = block.of_line((name, variant)) if name else []
        if others and others[0].study.model == study.model:
            return others[0].key.line
    return None


def signed_rank(test: PairedTest, values: Sequence[float]) -> PairedTest:
    """`test` with the result for the paired differences `values`."""
    from scipy.stats import wilcoxon

    differing = [value for value in values if value != 0]
    mean = statistics.fmean(values) if values else None
    test = replace(test, images=len(values), differing=len(differing), difference=mean)
    if len(differing) < MIN_DIFFERENCES:
        few_images = len(values) < MIN_DIFFERENCES
        what = f"{len(values)} images scored by both" if few_images else f"{len(differing)} differences"
        return replace(test, reason=f"{what}, the test needs {MIN_DIFFERENCES}")
    tied = len({abs(value) for value in differing}) < len(differing)
    exact = not tied and len(differing) <= MAX_EXACT
    p = float(wilcoxon(differing, method="exact" if exact else "approx", correction=False).pvalue)
    return replace(test, p=p, holm=p, how="exact" if exact else "approximate")


def holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests with Holm's correction (1979) for their number: step down, never decreasing, at most 1."""
    order = sorted((i for i, test in enumerate(tests) if test.p is not None), key=lambda i: (tests[i].p, i))
    corrected, largest = list(tests), 0.0
    for rank, i in enumerate(order):
        largest = min(1.0, max(largest, (len(order) - rank) * (tests[i].p or 0.0)))
        corrected[i] = replace(tests[i], holm=largest)
    return corrected


def _differences(block: Block, line: Line, other: Line, site: str, model: str, mode: str) -> list[float]:
    """Federated minus centralised of each image that both scored, sorted by the images' keys."""
    scores, others = (_scores(block, each, site, model, mode) for each in (line, other))
    values = []
    for key in sorted(scores.keys() & others.keys()):
        both = sorted(scores[key].keys() & others[key].keys())
        if both:
            mine, theirs = (statistics.fmean(of[key][place] for place in both) for of in (scores, others))
            values.append(round(mine - theirs, _DECIMALS))
    return values


def _scores(block: Block, line: Line, site: str, model: str, mode: str) -> _Scores:
    scores: _Scores = defaultdict(dict)
    for seed in block.seeds:
        run = block.run(line, seed, site)
        for image in run.images.get((model, site), ()) if run else ():
            for structure, values in image.scores.get(mode, {}).items():
                value = values.get(METRIC)
                if value is not None:
                    scores[image.key][seed, structure] = value
    return scores
