"""SGCA, FedSCA's aggregation (ICML 2025) by itself: all that is trained is sent, and each site gets its own mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn.functional import cosine_similarity

from fedfms.errors import StudyError
from fedfms.methods.base import Method, ServerState, Tensors, Update
from fedfms.methods.fedavg import in_order, weighted, weighted_mean
from fedfms.methods.fedmsa import ADAPTED
from fedfms.methods.similarity import KINDS, SCALES, pairwise, scaled
from fedfms.models.base import SegmentationModel

Rows = dict[str, dict[str, float]]  # of W: site -> what it takes of each site


def simplex(vectors: torch.Tensor) -> torch.Tensor:
    """Each row of (R, N) replaced by the nearest point whose values are >= 0 and sum to 1; float64 (R, N).

    Exact, in O(N log N) a row: the k largest values stay, less what makes their sum 1, for the largest k that
    leaves all of them above 0 (Held, Wolfe and Crowder, 1974).
    """
    vectors = vectors.to(torch.float64)
    vectors = vectors - vectors.amax(dim=1, keepdim=True)  # the same projection, and no 1 is lost beside a large value
    ranked = vectors.sort(dim=1, descending=True).values
    counts = torch.arange(1, vectors.shape[1] + 1, dtype=torch.float64)
    excess = (ranked.cumsum(dim=1) - 1) / counts
    kept = (ranked > excess).sum(dim=1, keepdim=True)
    return (vectors - excess.gather(1, kept - 1)).clamp(min=0)


def mixing(similarities: torch.Tensor, samples: Sequence[float], alpha: float) -> torch.Tensor:
    """W (N, N), each row of which solves FedSCA's Eq. 7 for one site, over W_ij >= 0 and sum_j W_ij = 1:

        min  sum_j (W_ij - m_j)^2 - alpha sum_j W_ij d(S_i, S_j),        m_j = n_j / sum n

    The paper prints m_i. That is constant in j and drops out of the problem, and sample counts would play no part;
    m_j is what its text argues, and what pFedGraph has, on which it builds. Completing the square, row i is the
    projection of m + (alpha / 2) d_i onto the simplex.

    Args:
        similarities: d, (N, N).
        samples: n_1..n_N, their sum above 0.
        alpha: how much being alike counts; 0 leaves every row m.
    """
    share = torch.tensor(samples, dtype=torch.float64) / sum(samples)
    return simplex(share + alpha / 2 * similarities)


class SGCA(Method):
    """Each site gets sum_j W_ij S_j with the W of Eq. 7, and is kept near it by a penalty while it trains.

    Args:
        alpha: weight of the similarity in Eq. 7.
        beta: weight of the penalty -cos(S, S_received); 0 = none.
        similarity: d of Eq. 7, one of `similarity.KINDS`.
        scale: "mean" divides d by its mean absolute value over pairs of sites, "none" leaves it.

    Raises:
        StudyError: a value out of its range.
    """

    name = "sgca"
    paper = "FedSCA's ablation, ICML 2025"
    adapters = True
    personal = True
    trained_roles = ADAPTED

    def __init__(self, *, alpha: float = 1.0, beta: float = 0.01, similarity: str = "l2", scale: str = "mean") -> None:
        for option, value in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(value) and value >= 0):
                raise StudyError(f"{option} is {value!r}", where=f"method {self.name}", do="a finite number, 0 or more")
        for option, text, allowed in (("similarity", similarity, KINDS), ("scale", scale, SCALES)):
            if text not in allowed:
                raise StudyError(f"{option} is {text!r}", where=f"method {self.name}", do=f"one of {list(allowed)}")
        self._alpha, self._beta, self._similarity, self._scale = alpha, beta, similarity, scale

    def penalty(self, model: SegmentationModel, received: Tensors) -> torch.Tensor | None:
        """beta x (-cos(S, S_received)) of the flattened shared parameters; None where one of the two has norm 0.

        There the cosine has no gradient, and what torch gives for it, some 1e8 long, would stay in Adam's moments.
        """
        if not self._beta:
            return None
        shared = [(p, received[name]) for name, p in model.named_parameters() if name in received]
        own, sent = (torch.cat([tensor.flatten() for tensor in side]) for side in zip(*shared, strict=True))
        if not (own.any() and sent.any()):
            return None
        return -self._beta * cosine_similarity(own, sent, dim=0)

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """A mixture for each site that answered or once did; `shared`, for any other, is the sample-weighted mean.

        W is over the sites that answered. One that was absent keeps its last row of W, of which what falls on these
        sites is taken, brought to sum 1; where nothing does, it gets the mean. `notes["W"]` has the sites that
        answered, and the row by which each mixture was made.
        """
        ordered = in_order(updates)
        shared = weighted_mean(ordered)
        solved = {**server.state.get("W", {}), **self._rows(ordered)}
        used = _restricted(solved, [update.site for update in ordered])
        per_site = {
            site: weighted([u.tensors for u in ordered if u.site in row], list(row.values()), by=sum(row.values()))
            for site, row in used.items()
        }
        notes = {"W": {"sites": [update.site for update in ordered], "rows": used}}
        state = {"W": dict(sorted(solved.items()))}
        return replace(server, round=server.round + 1, shared=shared, per_site=per_site, state=state, notes=notes)

    def _rows(self, ordered: Sequence[Update]) -> Rows:
        """W of the sites that answered, without its zeros."""
        similarities = pairwise([update.tensors for update in ordered], self._similarity)
        if self._scale == "mean":
            similarities = scaled(similarities)
        weights = mixing(similarities, [update.samples for update in ordered], self._alpha).tolist()
        sites = [update.site for update in ordered]
        return {
            site: {other: w for other, w in zip(sites, row, strict=True) if w > 0}
            for site, row in zip(sites, weights, strict=True)
        }


def _restricted(rows: Mapping[str, Mapping[str, float]], answered: Sequence[str]) -> Rows:
    """Each row's part on the sites that answered, brought to sum 1, in their order; rows with no such part are left
    out.
    """
    out: Rows = {}
    for site in sorted(rows):
        part = {other: rows[site][other] for other in answered if other in rows[site]}
        total = sum(part.values())
        if total > 0:
            out[site] = {other: weight / total for other, weight in part.items()}
    return out
