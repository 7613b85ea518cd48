"""The exact law of a squared cosine: Beta(k/2, (d−k)/2) for a Haar direction and a fixed k-dimensional subspace.

The square of a Haar direction's component in k of d dimensions is a ratio of two independent χ², hence Beta,
whatever the subspace: for k = 1 this is the cosine with any fixed vector, both poles counted. `d` is the dimension
of the space that the direction really lives in: a direction of a centred frame has no component along **1**, so its
callers pass d_model − 1.

Source: SV-32; the values of F3 and §3.12 of the theory page are tests.
"""

import numpy as np
from scipy import special

from covector.axes import Float, Int
from covector.errors import BadRequest

Number = float | int | np.number | Float[np.ndarray, "..."] | Int[np.ndarray, "..."]

# A cosine may exceed 1 by the rounding of the float32 dot product it came from, about √d·6e-8 = 4e-6 at d = 4096; more
# is a vector that was not normalised.
COSINE_SLACK = 1e-5

# Below this the plain tail nears the smallest double (2e-308), so its logarithm is computed another way.
SMALLEST_PLAIN_TAIL = 1e-250

# The continued fraction is used far out in the tail only, where it settles fast: 6 steps were the most for d up to 10⁶
# and any k. A hundred would be a defect of ours.
MAX_STEPS = 100

# The fraction stops when a step multiplies by 1 ± 1e-12: rounding keeps the steps from 1 by up to 1e-14 at d = 10⁵ (a
# limit of 1e-15 was never met there), and the logarithm is promised to 1e-9.
SETTLED = 1e-12


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
    # 1 − c² as a product: c near 1 keeps all its digits.
    return special.betainc((d - k) / 2, k / 2, (1 - length) * (1 + length))


def log_tail(cosine: Number, d: int, k: int = 1) -> Number:
    """Natural logarithm of `tail`, exact where the tail itself is too small for a double.

    Returns log P(‖P v‖ >= |cosine|) in the shape of `cosine` (−inf at |cosine| = 1 when k < d); absolute error
    under 1e-9 for d up to 10⁵. Raises what `tail` raises.
    Source: continued fraction of the incomplete beta function, DLMF 8.17.22, with Lentz' algorithm.
    """
    length = np.atleast_1d(_checked_length(cosine, d, k))
    if k == d:
        return np.where(np.isnan(length), np.nan, 0.0).reshape(np.shape(cosine))[()]
    plain = np.atleast_1d(tail(length, d, k))
    likely, deep = plain > 0.5, plain < SMALLEST_PLAIN_TAIL
    logs = np.log(np.where(deep, 1.0, plain))
    # A tail near 1 has its digits in the complement.
    logs[likely] = np.log1p(-special.betainc(k / 2, (d - k) / 2, length[likely] ** 2))
    logs[deep] = _deep_log_tail(length[deep], d, k)
    return logs.reshape(np.shape(cosine))[()]


def quantile(p: Number, d: int, k: int = 1) -> Number:
    """The length that a Haar direction of R^d reaches with probability `p` in a fixed k-dimensional subspace.

    Inverse of `tail`: returns c in [0, 1] with P(‖P v‖ >= c) = p, in the shape of `p`. Exact to rounding of c (for
    p so small that c rounds to 1, c is 1). Raises BadRequest if a p lies outside [0, 1], or not 1 <= k <= d.
    """
    probability = np.asarray(p, dtype=np.float64)
    if np.any((probability < 0) | (probability > 1)):
        raise BadRequest(f"a probability lies in [0, 1], got {_extreme(probability)}; pass p, not a percentage")
    _check_dimensions(d, k)
    if k == d:
        return np.where(np.isnan(probability), np.nan, 1.0)[()]
    return np.sqrt(special.betainccinv(k / 2, (d - k) / 2, probability))[()]


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


def _check_dimensions(d: int, k: int) -> None:
    if not 1 <= k <= d:
        raise BadRequest(f"a subspace has 1 <= k <= d dimensions, got k = {k}, d = {d}; check the order: (…, d, k)")


def _extreme(values: Float[np.ndarray, "..."]) -> str:
    worst = values.ravel()[np.nanargmax(np.abs(values - 0.5))]
    return f"{worst:g}"


def _deep_log_tail(length: Float[np.ndarray, " n"], d: int, k: int) -> Float[np.ndarray, " n"]:
    # log I_s(a, b) with s = 1 − c²; s is below its mean here, where the fraction converges fast.
    a, b = (d - k) / 2, k / 2
    s = (1 - length) * (1 + length)
    with np.errstate(divide="ignore"):  # c = 1: log 0 = −inf is the answer
        power = a * np.log(s) + 2 * b * np.log(length)
    return power - np.log(a) - special.betaln(a, b) + np.log(_beta_fraction(a, b, s))


def _beta_fraction(a: float, b: float, s: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    # Modified Lentz. Letters as in DLMF 8.17.22; `lower` and `upper` are the running ratios.
    upper = np.ones_like(s)
    lower = 1 / (1 - (a + b) * s / (a + 1))
    value = lower.copy()
    for m in range(1, MAX_STEPS):
        even = m * (b - m) * s / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / (1 + even * lower)
        upper = 1 + even / upper
        value = value * lower * upper
        odd = -(a + m) * (a + b + m) * s / ((a + 2 * m) * (a + 2 * m + 1))
        lower = 1 / (1 + odd * lower)
        upper = 1 + odd / upper
        step = lower * upper
        value = value * step
        if np.all(np.abs(step - 1) < SETTLED):
            return value
    raise AssertionError(f"continued fraction did not settle for a={a}, b={b}")
