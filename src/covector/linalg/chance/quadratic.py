"""Tails of ratios of quadratic forms: the gain of one direction, and its cosine with directions of a given covariance.

For a Haar direction c, ‖c M‖² = Σ σᵢ² xᵢ with x the squares of a Haar unit vector; for v ∝ g·root, cos²(v, c) is
(g·a)² / ‖g·root‖². Neither is a Beta law unless the weights are equal, and both are needed far below 1 in 10⁴.

Source: Kuonen 1999, "Saddlepoint approximations for distributions of quadratic forms in normal variables";
`docs/theory/search.md`, equations 4 and 7.
"""

import math

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.beta import Number, tail
from covector.linalg.chance.estimate import Estimate
from covector.linalg.chance.laws import Matched
from covector.linalg.chance.streams import Seed, generator

# Newton steps to the saddlepoint; ten are usual, each falls back to halving the bracket where it would leave it.
STEPS = 200
# Within this of the mean the formula is 0/0 and its limit is taken; the limit is off by about as much.
AT_MEAN = 1e-4
# Weights closer than this, relatively, leave the gain no freedom: it is 1 to rounding.
FLAT = 1e-12


def gain_tail(S: Float[np.ndarray, " r"], gain: float, d: int) -> float:
    """P(G >= gain) for G = ‖c M‖² / (‖M‖_F²/d), c a Haar direction of R^d and M with singular values `S`.

    Saddlepoint approximation. Measured relative error in p, from .9 to 1e-12: under 1 % for 8 or more equal gains,
    6 % for two; exact (Beta) for one. NaN where the gain cannot differ from 1 (d equal singular values).
    Raises BadRequest for singular values that are negative, all zero, or more than d, and for a negative gain.
    """
    power = np.asarray(S, dtype=np.float64) ** 2
    if np.any(np.asarray(S) < 0) or not power.sum() > 0 or len(power) > d or gain < 0:
        raise BadRequest(
            f"expected 1 to {d} singular values >= 0, not all 0, and a gain >= 0, got {len(power)}, {gain}"
        )
    power = power[power > 0]
    if len(power) == 1:
        return float(tail(math.sqrt(min(gain / d, 1.0)), d))
    level = gain * power.sum() / d
    least = power.min() if len(power) == d else 0.0
    if len(power) == d and power.max() - least <= FLAT * power.max():
        return math.nan
    if level <= least or level >= power.max():
        return float(level <= least)
    return _saddlepoint(np.append(power - level, -level), np.append(np.ones(len(power)), d - len(power)))


def _saddlepoint(a: Float[np.ndarray, " r"], count: Float[np.ndarray, " r"]) -> float:
    """P(Σ a_j χ²(count_j) >= 0), for weights of both signs."""
    a, count = a[count > 0], count[count > 0]
    s = _root(a, count)
    left = 1 - 2 * s * a
    second = 2 * float(np.sum(count * (a / left) ** 2))
    w = math.copysign(math.sqrt(max(float(np.sum(count * np.log(left))), 0.0)), s)
    if abs(w) < AT_MEAN:
        skew = 8 * float(np.sum(count * a**3)) / (2 * float(np.sum(count * a**2))) ** 1.5
        return _above(w + skew / 6)
    return _above(w + math.log(s * math.sqrt(second) / w) / w)


def _root(a: Float[np.ndarray, " r"], count: Float[np.ndarray, " r"]) -> float:
    """Where the derivative of the cumulant function, which rises from −∞ to ∞ between its poles, is zero."""
    low, high, s = 1 / (2 * a.min()), 1 / (2 * a.max()), 0.0
    for _ in range(STEPS):
        ratio = a / (1 - 2 * s * a)
        first, second = float(np.sum(count * ratio)), 2 * float(np.sum(count * ratio**2))
        low, high = (s, high) if first < 0 else (low, s)
        step = s - first / second
        step = step if low < step < high else (low + high) / 2
        if abs(step - s) <= 1e-14 * (high - low) or step == s or high - low <= 1e-15 * max(abs(low), abs(high)):
            return step
        s = step
    return s


def _above(x: float) -> float:
    return math.erfc(x / math.sqrt(2)) / 2


def matched_tail(
    cosine: Number, direction: Float[np.ndarray, " d"], law: Matched, *, draws: int, seed: Seed
) -> Estimate:
    """P(|cos(v, direction)| >= |cosine|) for directions v of a covariance: more than the basis' own structure?

    Each draw fixes all of g but its component along a = root·direction, whose Gaussian probability is then exact; so
    a thousand draws reach tails of 1e-20. Returns p in the shape of `cosine` with its standard error. Costs
    draws·m·d multiplications. Raises BadRequest if draws < 2.
    """
    if draws < 2:
        raise BadRequest(f"expected draws >= 2, got {draws}; 1000 give p to a per cent or so")
    c = np.asarray(direction, dtype=np.float64) / np.linalg.norm(direction)
    a = law.root @ c
    size = float(np.linalg.norm(a))
    levels = np.atleast_1d(np.asarray(cosine, dtype=np.float64)) ** 2
    if not size > 0:
        p = np.where(levels > 0, 0.0, 1.0)
        return Estimate(p.reshape(np.shape(cosine))[()], np.zeros(np.shape(cosine))[()], draws)
    along = a / size
    g = generator(seed, "matched tail").standard_normal((draws, len(a)))
    rest = (g - np.outer(g @ along, along)) @ law.root
    own = along @ law.root
    # |cos|² >= t is size²·z² >= t·(z²·A + 2·z·B + C) with z standard normal: a quadratic in z.
    A, B, C = float(own @ own), rest @ own, np.einsum("nd,nd->n", rest, rest)
    reached = np.stack([_reached(size**2, t, A, B, C) for t in levels])
    p, error = reached.mean(axis=1), reached.std(axis=1, ddof=1) / math.sqrt(draws)
    return Estimate(p.reshape(np.shape(cosine))[()], error.reshape(np.shape(cosine))[()], draws)


def _reached(power: float, t: float, A: float, B: np.ndarray, C: np.ndarray) -> np.ndarray:
    """P((power − tA)·z² − 2tB·z − tC >= 0) for every draw's B and C."""
    lead = power - t * A
    inside = t * t * B * B + lead * t * C
    root = np.sqrt(np.maximum(inside, 0.0))
    if lead > 0:
        return _normal((t * B - root) / lead) + _normal(-(t * B + root) / lead)
    if lead == 0:
        return np.where(B == 0, 1.0 * (t * C <= 0), _normal(-C / (2 * np.abs(np.where(B == 0, 1.0, B)))))
    low, high = (t * B + root) / lead, (t * B - root) / lead
    # In the tail that both ends lie in, so that a small difference keeps its digits.
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    return np.where(inside < 0, 0.0, _normal(high) - _normal(low))


def _normal(x: np.ndarray) -> np.ndarray:
    """Φ(x), accurate in the lower tail."""
    return np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x])
