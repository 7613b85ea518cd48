"""The exact law of a squared cosine: Beta(k/2, (d−k)/2) for a Haar direction and a fixed k-dimensional subspace.

The square of a Haar direction's component in k of d dimensions is a ratio of two independent χ², hence Beta,
whatever the subspace: for k = 1 this is the cosine with any fixed vector, both poles counted. `d` is the dimension
of the space that the direction really lives in: a direction of a centred frame has no component along **1**, so its
callers pass d_model − 1.

Source: SV-32; the values of F3 and §3.12 of the theory page are tests.
"""

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.incomplete_beta import incomplete_beta, inverse_incomplete_beta, log_incomplete_beta

Number = float | int | np.number | Float[np.ndarray, "..."] | Int[np.ndarray, "..."]

# A cosine may exceed 1 by the rounding of the float32 dot product it came from, about √d·6e-8 = 4e-6 at d = 4096; more
# is a vector that was not normalised.
COSINE_SLACK = 1e-5


def tail(cosine: Number, d: int, k: int = 1) -> Number:
    """Probability that a Haar direction of R^d reaches this length inside a fixed k-dimensional subspace.

    `cosine` is the length ‖P v‖ of the projection (for k = 1 the cosine; its sign is ignored, so both poles count).
    Returns P(‖P v‖ >= |cosine|), unitless, in the shape of `cosine`; NaN stays NaN. Exact: relative error under
    1e-11 while it is above 1e-300, below that it rounds to 0 (see `log_tail`).
    Raises BadRequest if a |cosine| exceeds 1 by more than rounding, or not 1 <= k <= d.
    Source: SV-32.
    """
    length = _checked_length(cosine, d, k)
    if k == d:
        return np.where(np.isnan(length), np.nan, 1.0)[()]
    return incomplete_beta((d - k) / 2, k / 2, *_shares(length))[()]


def log_tail(cosine: Number, d: int, k: int = 1) -> Number:
    """Natural logarithm of `tail`, exact where the tail itself is too small for a double.

    Returns log P(‖P v‖ >= |cosine|) in the shape of `cosine` (−inf at |cosine| = 1 when k < d); absolute error
    under 1e-9 for d up to 10⁵. Raises what `tail` raises.
    Source: SV-32.
    """
    length = _checked_length(cosine, d, k)
    if k == d:
        return np.where(np.isnan(length), np.nan, 0.0)[()]
    return log_incomplete_beta((d - k) / 2, k / 2, *_shares(length))[()]


def quantile(p: Number, d: int, k: int = 1) -> Number:
    """The length that a Haar direction of R^d reaches with probability `p` in a fixed k-dimensional subspace.

    Inverse of `tail`: returns c in [0, 1] with P(‖P v‖ >= c) = p, in the shape of `p`. Exact to rounding of c for small
    p (if c rounds to 1, c is 1), relative error under 1e-14 for p near 1.
    Raises BadRequest if a p lies outside [0, 1], or not 1 <= k <= d.
    """
    probability = np.asarray(p, dtype=np.float64)
    if np.any((probability < 0) | (probability > 1)):
        raise BadRequest(f"a probability lies in [0, 1], got {_extreme(probability)}; pass p, not a percentage")
    _check_dimensions(d, k)
    if k == d:
        return np.where(np.isnan(probability), np.nan, 1.0)[()]
    return np.sqrt(inverse_incomplete_beta((d - k) / 2, k / 2, probability)[1])[()]


def threshold(d: int, n: Number, alpha: float = 0.05, k: int = 1) -> Number:
    """The cosine τ(d, n, α) that n tries reach together with probability at most α.

    Returns τ = sqrt(Beta⁻¹(1 − α/n; k/2, (d−k)/2)): n Haar directions against one vector, or one against n, whatever
    their dependence (union bound, hence an upper bound; near exact when the n are far apart).
    `n` may be an array; the result has its shape. Raises BadRequest if n < 1, α outside (0, 1), or not 1 <= k <= d.
    Source: F3 of the theory page, SV-32.
    """
    tries = np.asarray(n, dtype=np.float64)
    if np.any(tries < 1):
        raise BadRequest(f"the number of tries n is at least 1, got {_extreme(tries)}; pass how many were compared")
    if not 0 < alpha < 1:
        raise BadRequest(f"the error rate α lies in (0, 1), got {alpha}; 0.05 is customary")
    return quantile(alpha / tries, d, k)


def _checked_length(cosine: Number, d: int, k: int) -> Float[np.ndarray, "..."]:
    _check_dimensions(d, k)
    length = np.abs(np.asarray(cosine, dtype=np.float64))
    if np.any(length > 1 + COSINE_SLACK):
        raise BadRequest(f"a cosine lies in [−1, 1], got {_extreme(length)}; divide by the norms of both vectors")
    return np.asarray(np.minimum(length, 1.0))


def _shares(length: Float[np.ndarray, "..."]) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    # 1 − c² as a product: c near 1 keeps all its digits.
    return np.asarray((1 - length) * (1 + length)), np.asarray(length * length)


def _check_dimensions(d: int, k: int) -> None:
    if not 1 <= k <= d:
        raise BadRequest(f"a subspace has 1 <= k <= d dimensions, got k = {k}, d = {d}; check the order: (…, d, k)")


def _extreme(values: Float[np.ndarray, "..."]) -> str:
    worst = values.ravel()[np.nanargmax(np.abs(values - 0.5))]
    return f"{worst:g}"
