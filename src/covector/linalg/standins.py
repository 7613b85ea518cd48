"""Linear stand-ins for nonlinear pieces: what a functional on their output becomes as a functional on their input.

A policy says which linear map stands for the piece, at one point x or between two, x⁺ and x⁻:

``exact``   its derivative at x;
``frozen``  the piece with its scale (norm), its ratio φ(a)/a (activation) or its pattern (softmax) held as at x, so
            that the value at x is reproduced;
``secant``  a symmetric map that takes x⁺ − x⁻ to the difference of the outputs, exactly;
``ignore``  direction only: a norm centres and applies its gain, its scale is 1; needs no point.

Everything is float64; leading axes are batch axes. Source: `docs/theory/observables.md`, equations 1–8.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

Policy = Literal["ignore", "exact", "frozen", "secant"]
POLICIES: tuple[Policy, ...] = ("ignore", "exact", "frozen", "secant")
# How many points each policy works at.
POINTS = {"ignore": 0, "exact": 1, "frozen": 1, "secant": 2}

# Working points nearer than this, relative to 1 + |a|, count as one: step² is then below rounding.
NEAR = 1e-5

Points = tuple[np.ndarray, ...]
Function = Callable[[np.ndarray], np.ndarray]


def check_points(policy: str, points: Points, what: str) -> None:
    """Raise BadRequest unless there are as many points as the policy works at."""
    if policy not in POINTS:
        raise BadRequest(f"expected a policy among {', '.join(POLICIES)}, got '{policy}'")
    if len(points) != POINTS[policy]:
        raise BadRequest(
            f"{what}: policy '{policy}' expects {POINTS[policy]} working point(s), got {len(points)}; "
            "give prompts to take them from, or choose another policy"
        )


def pull_norm(
    v: Float[np.ndarray, "*batch d"],
    policy: Policy,
    points: Points,
    *,
    centre: bool,
    gain: Float[np.ndarray, " d"] | None,
    eps: float,
) -> Float[np.ndarray, "*batch d"]:
    """A functional on LayerNorm's (`centre`) or RMSNorm's output, as one on its input; x [*batch d] per point.

    With P the centring, w = P(γ⊙v), c = Px, σ = √(mean c² + eps): exact (w − c (c·w)/(d σ²))/σ; frozen w/σ; ignore w;
    secant ½(1/σ⁺ + 1/σ⁻) w − (2/d) c̄ (c̄·w) / (σ⁺σ⁻(σ⁺ + σ⁻)), c̄ the mean of c⁺ and c⁻.
    Exact as the policies promise (OP-4 to OP-7, OP-17). Raises BadRequest for the wrong number of points.
    """
    check_points(policy, points, "norm")
    w = v if gain is None else v * gain
    w = _centred(w) if centre else w
    if policy == "ignore":
        return w
    centred = [_centred(x) if centre else x for x in points]
    sigma = [np.sqrt(np.mean(c * c, axis=-1, keepdims=True) + eps) for c in centred]
    d = v.shape[-1]
    if policy == "frozen":
        return w / sigma[0]
    if policy == "exact":
        along = np.sum(centred[0] * w, axis=-1, keepdims=True)
        return (w - centred[0] * along / (d * sigma[0] ** 2)) / sigma[0]
    mean, (a, b) = 0.5 * (centred[0] + centred[1]), sigma
    along = np.sum(mean * w, axis=-1, keepdims=True)
    return 0.5 * (1 / a + 1 / b) * w - (2 / d) * mean * along / (a * b * (a + b))


def slope(policy: Policy, points: Points, function: Function, derivative: Function) -> np.ndarray:
    """The factor m that stands for an elementwise function at each coordinate; 1 for ``ignore``.

    Frozen is (φ(a) − φ(0))/a, so that m·a + φ(0) = φ(a); secant (φ(a⁺) − φ(a⁻))/(a⁺ − a⁻); the derivative between
    points that are too near for a quotient. Raises BadRequest for the wrong number of points.
    """
    check_points(policy, points, "activation")
    if policy == "ignore":
        return np.ones(())
    a = points[0]
    if policy == "exact":
        return derivative(a)
    b = points[1] if policy == "secant" else np.zeros_like(a)
    step = a - b
    # Near each other the quotient is rounding over step; the derivative between them is off by step² only. Points on
    # two sides of 0 keep the quotient: a kink may stand there.
    near = (np.abs(step) < NEAR * (1 + np.abs(a))) & (a * b > 0) | (step == 0)
    return np.where(near, derivative(0.5 * (a + b)), (function(a) - function(b)) / np.where(near, 1.0, step))


def logarithmic_mean(
    p: Float[np.ndarray, "*batch"], q: Float[np.ndarray, "*batch"], log_ratio: Float[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch"]:
    """(p − q)/(ln p − ln q) of positive numbers, given ln(p/q); p where they are equal, 0 where one is 0.

    Stable where p and q are close: q·expm1(r)/r. Relative error a few eps.
    """
    small = np.where(log_ratio > 0, q, p)  # so that expm1 is of a positive number and nothing overflows to inf·0
    r = np.abs(log_ratio)
    tiny = r < 1e-12
    large = r > 30  # there the larger number alone decides, and expm1 may overflow
    grown = np.expm1(np.where(tiny | large, 1.0, r)) / np.where(tiny | large, 1.0, r)
    far = np.abs(p - q) / np.where(large, r, 1.0)
    return np.where(tiny, small, np.where(large, far, small * grown))


def pull_softmax(g: Float[np.ndarray, "*batch key"], policy: Policy, logs: Points) -> Float[np.ndarray, "*batch key"]:
    """A functional on attention weights as one on the scores; `logs` are log weights per point, −inf where masked.

    exact A⊙(g − Σ A g); secant L⊙(g − Σ L g/Σ L) with L the logarithmic mean of the two weights, exact for the
    difference (OP-17); frozen and ignore 0: the pattern is held. Raises BadRequest for the wrong number of points.
    """
    if policy in ("frozen", "ignore"):
        return np.zeros_like(g)
    check_points(policy, logs, "softmax")
    weights = [np.exp(log) for log in logs]
    if policy == "exact":
        A = weights[0]
        return A * (g - np.sum(A * g, axis=-1, keepdims=True))
    seen = np.isfinite(logs[0]) & np.isfinite(logs[1])
    ratio = np.where(seen, np.where(seen, logs[0], 0.0) - np.where(seen, logs[1], 0.0), 0.0)
    L = np.where(seen, logarithmic_mean(weights[0], weights[1], ratio), 0.0)
    total = np.sum(L, axis=-1, keepdims=True)
    return L * (g - np.sum(L * g, axis=-1, keepdims=True) / np.where(total > 0, total, 1.0))


def middle(policy: Policy, points: Points) -> np.ndarray:
    """What a factor of a product is held at while the other moves: its value, or the mean of two (OP-17)."""
    check_points(policy, points, "product")
    return points[0] if len(points) == 1 else 0.5 * (points[0] + points[1])


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=-1, keepdims=True)
