"""The regularised incomplete beta function I_x(a, b), its logarithm and its inverse, on NumPy alone.

I_x(a, b) = x^a y^b / B(a, b) / f, y = 1 − x, where f is a continued fraction that settles fast up to
x = (a + 1)/(a + b + 2), near the mean of Beta(a, b); beyond it 1 − I_y(b, a) is found instead. Callers know x and y
and pass both, so neither loses its digits where it is small. Domain: a and b from ½ (ours are half a dimension) to
5·10⁵. `scipy.special` has this too, but importing it costs every command 0.05 s on top of scipy.linalg, it takes x
alone (so I loses digits for x near 1: 1e-6 at d = 10⁵), and some of its tails are 0 (`betainc(2016, 32, 0.702)`, 1.17).

Source: DLMF 8.17.22, its even part (two terms in one; Didonato and Morris 1992, BFRAC); DLMF 5.11.1 for the power.
"""

import math
from functools import lru_cache

import numpy as np

from covector.axes import Bool, Float

Shares = Float[np.ndarray, "..."]
Row = Float[np.ndarray, " n"]
Terms = list[tuple[float, float, float]]

# Two lengths of the fraction agree to this: rounding keeps them from agreeing below 1e-15, and 1e-11 is promised.
SETTLED = 1e-14

# The fraction takes 2 to 60 steps for most a and b, 362 for a = b = 5·10⁵. Ten thousand would be a defect of ours.
MAX_STEPS = 10_000

# Values per pass through the fraction: rows of 64 kB stay in a core's cache, and their memory is not mapped anew for
# every operation (50,000 values in one pass took twice as long where the allocator did that).
CHUNK = 8192

# Up to this many values plain floats are quicker: 60 terms cost one float 6 µs, one array 180 µs.
FEW = 25

# Pairs (a, b) whose constants are kept: a call asks for one and its mirror, a table for those of a few ranks; the
# fraction of one is a few hundred numbers.
MEMORY = 256

# From here Stirling's series with five terms is exact to 3e-16; below, the logarithm of Γ is at most 26.
STIRLING_FROM = 15.0

# The inverse takes 3 to 10 rounds (measured, p down to 5e-324). Its steps are of third order, so a residual of 1e-6
# leaves nothing after the next.
MAX_ROUNDS = 60
CLOSE = 1e-6

# A share below this is as good as 0 to its complement; its powers stay finite.
LEAST_SHARE = 1e-300


def incomplete_beta(a: float, b: float, x: Shares, y: Shares) -> Shares:
    """I_x(a, b) = P(X <= x) for X ~ Beta(a, b), in the shape of x; y is 1 − x.

    Relative error under 1e-11 above 1e-300 while a and b are at most 5·10⁴, given x and y to rounding; below that it
    rounds to 0. NaN stays NaN. Costs about 0.1 µs per value.
    """
    logs, beyond = _log_of_nearer_end(a, b, x, y)
    share = np.exp(logs)
    return np.asarray(np.where(beyond, 1 - share, share))


def log_incomplete_beta(a: float, b: float, x: Shares, y: Shares) -> Shares:
    """Natural logarithm of `incomplete_beta`, exact however small or near 1 that is; −inf at x = 0.

    Absolute error under 1e-9 (1e-11 while I is above 1e-300), relative error under 1e-11 where I is near 1.
    """
    logs, beyond = _log_of_nearer_end(a, b, x, y)
    return np.asarray(np.where(beyond, np.log1p(-np.exp(logs)), logs))


def inverse_incomplete_beta(a: float, b: float, p: Shares) -> tuple[Shares, Shares]:
    """The x with I_x(a, b) = p, and y = 1 − x, both with all their digits, in the shape of p; NaN stays NaN.

    They are the shares of a p, and of a 1 − p, that differ from those asked for by 1e-11 at most (relative). Where x or
    y would be under 1e-300, one of that size comes back.
    """
    flat = p.ravel()
    x = np.where((flat == 0) | (flat == 1), flat, np.nan)
    y = 1 - x
    edge = np.exp(_log_below(a, b, *_middle(a, b))[0])
    low, high = (flat > 0) & (flat <= edge), (flat > edge) & (flat < 1)
    if low.any():
        x[low], y[low] = _solve(a, b, np.log(flat[low]))
    if high.any():
        y[high], x[high] = _solve(b, a, np.log1p(-flat[high]))
    return x.reshape(p.shape), y.reshape(p.shape)


def log_beta(a: float, b: float) -> float:
    """log B(a, b), absolute error under 1e-14·(1 + its size): nothing cancels when one of them is large."""
    return -_log_peak(a, b) - a * math.log1p(b / a) - b * math.log1p(a / b)


def _log_of_nearer_end(a: float, b: float, x: Shares, y: Shares) -> tuple[Shares, Bool[np.ndarray, "..."]]:
    # log I_x(a, b), or log I_y(b, a) where x is beyond the middle, and the mask that says where that is.
    flat_x, flat_y = x.ravel(), y.ravel()
    beyond = flat_x > _middle(a, b)[0]
    logs = np.empty(flat_x.shape)
    if not beyond.all():
        logs[~beyond] = _log_below(a, b, flat_x[~beyond], flat_y[~beyond])[0]
    if beyond.any():
        logs[beyond] = _log_below(b, a, flat_y[beyond], flat_x[beyond])[0]
    return logs.reshape(x.shape), beyond.reshape(x.shape)


def _middle(a: float, b: float) -> tuple[Row, Row]:
    # The fraction of (a, b) settles fast below this x, that of (b, a) above it.
    return np.array([(a + 1) / (a + b + 2)]), np.array([(b + 1) / (a + b + 2)])


def _log_below(a: float, b: float, x: Row, y: Row) -> tuple[Row, Row]:
    # log I_x(a, b) for x up to the middle, and the fraction f, which is its slope in log(x/y).
    fraction = _fraction(a, b, x, y)
    return _log_power(a, b, x, y) - np.log(fraction), fraction


def _log_power(a: float, b: float, x: Row, y: Row) -> Row:
    # log of x^a y^b / B(a, b), as its value at the mode plus the fall from there: with a = b = 5·10⁴ the three
    # logarithms are of size 10⁵ and their sum of size 1, while the fall only adds terms of the size of `lead`.
    lead = a * y - b * x
    with np.errstate(divide="ignore"):  # x = 0: log 0 = −inf is the answer
        fall = a * _log_ratio(-lead / a, x * ((a + b) / a)) + b * _log_ratio(lead / b, y * ((a + b) / b))
    return _log_peak(a, b) + fall


def _log_ratio(change: Row, ratio: Row) -> Row:
    # log(1 + change) = log(ratio); the change has the digits near 1, the ratio has them near 0.
    return np.where(change > -0.5, np.log1p(np.maximum(change, -0.5)), np.log(ratio))


@lru_cache(maxsize=MEMORY)
def _log_peak(a: float, b: float) -> float:
    # log of x^a y^b / B(a, b) at x = a/(a + b), where the large parts of Stirling's formula cancel exactly.
    remainders = _stirling_remainder(a) + _stirling_remainder(b) - _stirling_remainder(a + b)
    return 0.5 * math.log(a / (2 * math.pi) * (b / (a + b))) - remainders


def _stirling_remainder(z: float) -> float:
    # log Γ(z) = (z − ½) log z − z + ½ log 2π + remainder
    if z < STIRLING_FROM:
        return math.lgamma(z) - (z - 0.5) * math.log(z) + z - 0.5 * math.log(2 * math.pi)
    u = 1 / z**2
    return (1 / 12 - u * (1 / 360 - u * (1 / 1260 - u * (1 / 1680 - u / 1188)))) / z


def _fraction(a: float, b: float, x: Row, y: Row) -> Row:
    # Every term is taken over x: f = x·(P₀ + Q₀ w − R₁/(P₁ + Q₁ w − …)) with w = y/x, so that the digits of the smaller
    # one of x and y are kept, and a term costs four operations. Evaluated from its far end, whose place is known.
    positive = np.maximum(x, LEAST_SHARE)
    w, terms = y / positive, _terms(a, b)
    if len(w) <= FEW:
        return positive * np.array([_evaluate(terms, ratio) for ratio in w.tolist()])
    return positive * np.concatenate([_evaluate(terms, w[at : at + CHUNK]) for at in range(0, len(w), CHUNK)])


def _evaluate(terms: Terms, w: float | Row) -> float | Row:
    value: float | Row = math.inf
    for P, Q, R in terms:
        value = P + Q * w - R / value
    return value


@lru_cache(maxsize=MEMORY)
def _terms(a: float, b: float) -> Terms:
    # The terms (P_m, Q_m, R_{m+1}), last first, as many as the slowest x needs: that is the middle, where w is least.
    w = (b + 1) / (a + 1)
    terms: Terms = []
    before = math.inf
    while len(terms) < MAX_STEPS:
        enough = len(terms)
        terms += [_term(a, b, m) for m in range(enough, enough + enough // 4 + 1)]
        value = float(_evaluate(terms[::-1], w))
        if abs(value / before - 1) < SETTLED:
            return terms[:enough][::-1]
        before = value
    raise AssertionError(f"continued fraction did not settle for a={a}, b={b}")


def _term(a: float, b: float, m: int) -> tuple[float, float, float]:
    even = m * (a + b + m - 1) / (a + 2 * m - 1) if m else 0.0  # a = 1 would divide by 0 there
    odd = (a + m) / (a + 2 * m + 1)
    following = odd * (a + b + m) * (m + 1) * (m + 1 - b) / (a + 2 * m + 1)
    return even - odd * (b - 1 - m), a + 2 * m, following


def _solve(a: float, b: float, target: Row) -> tuple[Row, Row]:
    # log I_x(a, b) = target, with x up to the middle, from the middle. In v = log(x/y) the logarithm rises and is
    # concave, slope f, curvature f·(a y − b x − f): its parabola is solved (where that has no root, possible left of
    # the answer only, its top is twice Newton's step). Steps are taken in x and y: v would round the smaller one.
    x, y = (np.broadcast_to(share, target.shape) for share in _middle(a, b))
    for _ in range(MAX_ROUNDS):
        value, slope = _log_below(a, b, x, y)
        excess = value - target
        bend = 1 - (a * y - b * x) / slope
        factor = np.exp(-2 * excess / (slope * (1 + np.sqrt(np.maximum(1 + 2 * excess * bend, 0)))))
        whole = y + x * factor
        stuck = (x == LEAST_SHARE) & (excess > 0)
        x, y = np.maximum(x * factor / whole, LEAST_SHARE), y / whole
        if np.all(stuck | (np.abs(excess) < CLOSE)):
            return x, y
    raise AssertionError(f"the inverse did not settle for a={a}, b={b}")
