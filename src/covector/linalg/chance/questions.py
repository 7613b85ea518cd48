"""The three questions a best cosine can answer, never merged: `p_dir`, `p_cov`, `p_svd`.

p_dir   is this direction related to the basis at all?                null: Haar directions
p_cov   is it more than the basis' own principal structure?           null: directions of the basis' covariance
p_svd   did the SVD find it, or would any basis of this head do?      null: bases of the same read or write subspace

Each is the probability that one null direction reaches the observed best |cos| with any of the n vectors, both poles
counted. The closed forms are unions of exact tails: rigorous upper bounds, near exact for p well below 1 when the
vectors are far apart, conservative when they are correlated as tokens are. (Šidák's product is not used: for
orthonormal vectors it is too small.) The `_exact` forms simulate with the actual vectors and fall back on the bound
below 1/draws.

Source: decision 6 of the design, §4.0 of the theory page.
"""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.beta import Number, tail
from covector.linalg.chance.estimate import Estimate, monte_carlo_p
from covector.linalg.chance.laws import Matched, covariance_root
from covector.linalg.chance.maxima import null_maxima
from covector.linalg.chance.streams import Seed

# p_svd takes the longest projections one by one and the rest in bundles counted at their longest member, which keeps
# it an upper bound. With 50,257 tokens and r = 64 the excess is under 1 % (measured) and the cost a twelfth.
ONE_BY_ONE = 1024
BUNDLE = 16

# Scores per step of p_svd: 256 × 4100 tails are 8 MB.
UNION_SCORES = 256

# An observed cosine may exceed the longest projection by the float32 rounding of both.
REACH_SLACK = 1e-4


def p_dir(best_cosine: Number, d: int, n: int) -> Number:
    """Probability that a Haar direction of R^d reaches this |cos| with any of n vectors, either pole: upper bound.

    Returns min(1, n · tail), in the shape of `best_cosine`; NaN stays NaN. Never too small, whatever the n vectors.
    Exact for orthonormal vectors once cos² > ½ (two squares cannot both exceed ½); otherwise see `p_dir_exact`.
    `d` is the dimension directions live in (d_model − 1 when both sides are centred).
    Raises BadRequest if a |cos| exceeds 1, n < 1 or d < 1.
    """
    if n < 1:
        raise BadRequest(f"the best of n cosines needs n >= 1, got n = {n}; pass the number of vectors in the basis")
    return np.minimum(1.0, n * np.asarray(tail(best_cosine, d)))[()]


def p_dir_exact(best_cosine: Number, vectors: Float[np.ndarray, "n d"], *, draws: int, seed: Seed) -> Estimate:
    """The same probability against the actual unit vectors, by Monte-Carlo with its standard error.

    Returns (1 + #)/(draws + 1) in the shape of `best_cosine`, or the bound of `p_dir` where that is smaller. To score
    directions in several calls make the null once: `monte_carlo_p(best, null_maxima(vectors, …), at_most=p_dir(…))`.
    Costs draws·n·d multiplications. Raises BadRequest if a |cos| exceeds 1, or the vectors are none or not finite.
    """
    bound = p_dir(best_cosine, vectors.shape[1], max(len(vectors), 1))
    null = null_maxima(vectors, draws=draws, seed=seed)
    return monte_carlo_p(np.abs(best_cosine), null, at_most=bound)


def p_cov(best_cosine: Number, vectors: Float[np.ndarray, "n d"], *, draws: int, seed: Seed) -> Estimate:
    """Probability that a direction v ∝ Σ^½ g, Σ the second moment of the unit vectors, reaches this |cos| with any.

    Monte-Carlo, (1 + #)/(draws + 1) with standard error, in the shape of `best_cosine`. No closed form is used, so
    1/(draws + 1) is the smallest answer. Pass the vectors exactly as they were scored (centred or not): `laws` says
    why. Costs draws·n·d multiplications. Raises BadRequest if the vectors are none, all null, or not finite.
    """
    null = null_maxima(vectors, draws=draws, seed=seed, law=Matched(covariance_root(vectors)))
    return monte_carlo_p(np.abs(best_cosine), null)


def p_svd(best_cosine: Number, projected_norms: Float[np.ndarray, " n"], r: int, d: int) -> Number:
    """Probability that a direction of a random basis of the same r-dimensional subspace reaches this |cos|.

    `projected_norms` are ‖P e‖ for every unit vector e of the basis, P the projector on the subspace. Returns
    min(1, Σ_e P(‖Pe‖²·Beta(½, (r−1)/2) >= cos²)): an upper bound, in the shape of `best_cosine`; NaN stays NaN. The
    sum is exact to 1e-11 up to 1024 vectors, beyond that at most a few per cent too large.
    NaN throughout (not defined) when r = d, where the subspace is the whole space and p_dir is the answer, and when
    r = 1, where there is no other basis. `d` as in `p_dir`: in a centred frame both drop the mean's dimension.
    Raises BadRequest if 1 <= r <= d fails, a norm lies outside [0, 1], or a |cos| exceeds the longest projection
    (scores and norms are then of different subspaces).
    """
    if not 1 <= r <= d:
        raise BadRequest(f"a subspace of {d} dimensions has rank 1 to {d}, got r = {r}; check the order: (…, r, d)")
    best = np.asarray(np.abs(np.asarray(best_cosine, dtype=np.float64)))
    if r in (1, d):
        return np.full(best.shape, np.nan)[()]
    longest_first = np.sort(np.asarray(projected_norms, dtype=np.float64))[::-1]
    _check_reach(best, longest_first)
    return _union_of_tails(best.ravel(), longest_first, r).reshape(best.shape)[()]


def p_svd_exact(
    best_cosine: Number, projected: Float[np.ndarray, "n r"], *, d: int, draws: int, seed: Seed
) -> Estimate:
    """The same probability with the actual projections, by Monte-Carlo over rotations inside the subspace.

    `projected` are the coordinates of every unit vector of the basis in an orthonormal basis of the subspace
    (E @ Vh.T). Returns as `p_dir_exact` does, with `p_svd` as the bound; NaN when r = d or r = 1.
    Raises what `p_svd` raises.
    """
    bound = p_svd(best_cosine, np.linalg.norm(projected, axis=1), projected.shape[1], d)
    null = null_maxima(projected, draws=draws, seed=seed)
    undefined = projected.shape[1] in (1, d)
    return monte_carlo_p(np.abs(best_cosine) * (np.nan if undefined else 1.0), null, at_most=bound)


def _union_of_tails(
    best: Float[np.ndarray, " m"], longest_first: Float[np.ndarray, " n"], r: int
) -> Float[np.ndarray, " m"]:
    first, rest = longest_first[:ONE_BY_ONE], longest_first[ONE_BY_ONE:]
    norms = np.concatenate([first, rest[::BUNDLE]])
    counts = np.ones(len(norms))
    counts[len(first) :] = np.diff(np.append(np.arange(0, len(rest), BUNDLE), len(rest)))
    norms, counts = norms[norms > 0], counts[norms > 0]  # a vector outside the subspace cannot win
    total = np.empty(len(best))
    for start in range(0, len(best), UNION_SCORES):
        ratio = np.minimum(best[start : start + UNION_SCORES, None] / norms, 1.0)
        total[start : start + UNION_SCORES] = np.asarray(tail(ratio, r)) @ counts
    return np.where(np.isnan(best), np.nan, np.minimum(total, 1.0))


def _check_reach(best: Float[np.ndarray, "..."], longest_first: Float[np.ndarray, " n"]) -> None:
    if len(longest_first) == 0 or not (longest_first[-1] >= 0 and longest_first[0] <= 1 + REACH_SLACK):
        raise BadRequest("projected norms of unit vectors lie in [0, 1], and there is at least one; pass ‖Pe‖, not ‖e‖")
    reach = longest_first[0] * (1 + REACH_SLACK) + 1e-12
    if np.any(best > reach):
        raise BadRequest(
            f"no |cos| exceeds the longest projection {longest_first[0]:.4g}, got {np.nanmax(best):.4g}; "
            "take scores and norms from the same subspace"
        )
