"""SGCA (aggregation of FedSCA, ICML 2025): all trained tensors are shared, and each site gets its own mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn.functional import cosine_similarity

from fedfms.methods.base import Method, ServerState, Tensors, Update
from fedfms.methods.fedavg import sorted_by_site, weighted_mean, weighted_sum
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.options import NonNegative, checked
from fedfms.methods.similarity import Kind, Scale, pairwise_similarities, scale_by_mean
from fedfms.models.base import SegmentationModel

Rows = dict[str, dict[str, float]]  # of W: site -> weight of each site


def project_to_simplex(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean projection of each row of (R, N) onto {w: w >= 0, sum w = 1}; float64 (R, N).

    Exact, O(N log N) per row (Held, Wolfe and Crowder, 1974): the k largest values are reduced by a constant so that
    they sum to 1, for the largest k that leaves all of them positive; the others become 0.
    """
    vectors = vectors.to(torch.float64)
    vectors = vectors - vectors.amax(dim=1, keepdim=True)  # same projection; avoids losing 1 next to a large value
    ranked = vectors.sort(dim=1, descending=True).values
    counts = torch.arange(1, vectors.shape[1] + 1, dtype=torch.float64)
    excess = (ranked.cumsum(dim=1) - 1) / counts
    positive = (ranked > excess).sum(dim=1, keepdim=True)
    return (vectors - excess.gather(1, positive - 1)).clamp(min=0)


def mixing_weights(similarities: torch.Tensor, samples: Sequence[float], alpha: float) -> torch.Tensor:
    """W (N, N). Row i solves FedSCA's Eq. 7 for site i, over W_ij >= 0 and sum_j W_ij = 1:

        min  sum_j (W_ij - m_j)^2 - alpha sum_j W_ij d(S_i, S_j),        m_j = n_j / sum n

    The paper prints m_i. That is constant in j and drops out of the problem, so that sample counts would have no
    effect; m_j is what its text argues, and what pFedGraph, on which it builds, uses. Completing the square, row i is
    the projection of m + (alpha / 2) d_i onto the simplex.

    Args:
        similarities: d, (N, N).
        samples: n_1..n_N, with a positive sum.
        alpha: weight of the similarity; with 0 every row is m.
    """
    share = torch.tensor(samples, dtype=torch.float64) / sum(samples)
    return project_to_simplex(share + alpha / 2 * similarities)


class SGCA(Method):
    """Each site gets sum_j W_ij S_j with W from Eq. 7; a penalty keeps it near that mixture in training.

    Args:
        alpha: weight of the similarity in Eq. 7.
        beta: weight of the penalty -cos(S, S_received); 0 = no penalty.
        similarity: d of Eq. 7; see `similarity.pairwise_similarities`.
        scale: "mean" divides d by its mean absolute value over pairs of sites, "none" does not.
    """

    name = "sgca"
    paper = "FedSCA's ablation, ICML 2025"
    adapters = True
    personal = True
    trained_roles = FedMSA.trained_roles

    @checked
    def __init__(
        self, *, alpha: NonNegative = 1.0, beta: NonNegative = 0.01, similarity: Kind = "l2", scale: Scale = "mean"
    ) -> None:
        self._alpha, self._beta, self._similarity, self._scale = alpha, beta, similarity, scale

    def penalty(self, model: SegmentationModel, received: Tensors) -> torch.Tensor | None:
        """-beta cos(S, S_received) of the flattened shared parameters; None if one of them has norm 0.

        The cosine has no gradient there; torch's value for it, about 1e8, would stay in Adam's moments.
        """
        if not self._beta:
            return None
        shared = [(p, received[name]) for name, p in model.named_parameters() if name in received]
        own, sent = (torch.cat([tensor.flatten() for tensor in side]) for side in zip(*shared, strict=True))
        if not (own.any() and sent.any()):
            return None
        return -self._beta * cosine_similarity(own, sent, dim=0)

    def aggregate(self, updates: Sequence[Update], server: ServerState) -> ServerState:
        """A mixture for each site with an update in this or an earlier round; `shared`, for all others, is the
        sample-weighted mean.

        W is over the sites of this round's updates. An absent site keeps its last row of W, restricted to these sites
        and normalised to sum 1; if nothing remains, it gets the mean. `notes["W"]` holds the sites of the updates and
        the row of each mixture.
        """
        ordered = sorted_by_site(updates)
        shared = weighted_mean(ordered)
        solved = {**server.state.get("W", {}), **self._rows(ordered)}
        used = _restrict(solved, [update.site for update in ordered])
        per_site = {
            site: weighted_sum([u.tensors for u in ordered if u.site in row], list(row.values()), by=sum(row.values()))
            for site, row in used.items()
        }
        notes = {"W": {"sites": [update.site for update in ordered], "rows": used}}
        state = {"W": dict(sorted(solved.items()))}
        return replace(server, round=server.round + 1, shared=shared, per_site=per_site, state=state, notes=notes)

    def _rows(self, ordered: Sequence[Update]) -> Rows:
        """The positive entries of W over the sites of the updates."""
        similarities = pairwise_similarities([update.tensors for update in ordered], self._similarity)
        if self._scale == "mean":
            similarities = scale_by_mean(similarities)
        weights = mixing_weights(similarities, [update.samples for update in ordered], self._alpha).tolist()
        sites = [update.site for update in ordered]
        return {
            site: {other: w for other, w in zip(sites, row, strict=True) if w > 0}
            for site, row in zip(sites, weights, strict=True)
        }


def _restrict(rows: Mapping[str, Mapping[str, float]], sites: Sequence[str]) -> Rows:
    """Each row restricted to `sites`, in their order, and normalised to sum 1; rows with nothing left are dropped."""
    out: Rows = {}
    for site in sorted(rows):
        part = {other: rows[site][other] for other in sites if other in rows[site]}
        total = sum(part.values())
        if total > 0:
            out[site] = {other: weight / total for other, weight in part.items()}
    return out
