"""How strongly to change each of many directions: proportional dampening in closed form, the optimum under a budget.

Source: F6 and F7 of the theory page; `docs/theory/edits.md`, equations 12–15.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float
from covector.errors import BadRequest

# μ is looked for between these; beyond them ε is −1 or 0 to more digits than float32 has.
LEAST_MU, MOST_MU = 1e-12, 1e12
_BISECTIONS = 80
# Newton steps end when no free slope is larger than this share of the largest at 0; they are finitely many.
EXACT = 1e-12
_STEPS, _SHORTEST = 1000, 1e-12


def proportional(
    related: Float[np.ndarray, " n"],
    mu: float,
    keep: float = 0.0,
    target: Float[np.ndarray, " n"] | None = None,
    control: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, " n"]:
    """ε = (keep − 1) a t / (a t + μ κ): each direction in proportion to how much of it is the concept.

    `related` holds aᵢ = ‖C vᵢ‖² in [0, 1]; `target` tᵢ and `control` κᵢ are E[(x·uᵢ)²] on text with the concept and
    on other text (1 each where they are left out). For keep = 0 it is the exact minimiser of
    Σ σᵢ² [(1 + εᵢ)² aᵢ tᵢ + μ κᵢ εᵢ²] = E_t‖x M' Cᵀ‖² + μ E_κ‖x(M' − M)‖² (inputs taken as uncorrelated along the u):
    between −1 (μ → 0, where a > 0) and 0 (μ → ∞). keep > 1 amplifies. Raises BadRequest for μ ≤ 0 or keep < 0.
    """
    if not (mu > 0 and np.isfinite(mu)) or not (keep >= 0 and np.isfinite(keep)):
        raise BadRequest(f"expected μ > 0 and a share to keep of at least 0, got μ {mu:g} and keep {keep:g}")
    wanted = related * (1.0 if target is None else target)
    spared = mu * (np.ones_like(related) if control is None else control)
    total = wanted + spared
    return (keep - 1.0) * np.divide(wanted, total, out=np.zeros_like(wanted), where=total > 0)


def size_of(epsilon: Float[np.ndarray, " n"], gains: Float[np.ndarray, " n"]) -> float:
    """‖ΔM‖_F = √Σ ε²σ² over all directions of all matrices."""
    return float(np.sqrt(np.sum((epsilon * gains) ** 2)))


def mu_of_size(
    related: Float[np.ndarray, " n"],
    gains: Float[np.ndarray, " n"],
    wanted: float,
    keep: float = 0.0,
    target: Float[np.ndarray, " n"] | None = None,
    control: Float[np.ndarray, " n"] | None = None,
) -> float:
    """The μ at which the change has a given size ‖ΔM‖_F; sizes fall as μ grows. NaN for more than all there is."""

    def size(log_mu: float) -> float:
        return size_of(proportional(related, float(np.exp(log_mu)), keep, target, control), gains)

    low, high = float(np.log(LEAST_MU)), float(np.log(MOST_MU))
    if wanted > size(low) or wanted <= 0:
        return float("nan")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) > wanted else (low, middle)
    return float(np.exp((low + high) / 2))


@dataclass(frozen=True, eq=False)
class Box:
    """The minimiser of gᵀε + ½ρ εᵀFε in a box, and which bounds hold it."""

    epsilon: Float[np.ndarray, " n"]
    at_low: Bool[np.ndarray, " n"]
    at_high: Bool[np.ndarray, " n"]

    @property
    def free(self) -> int:
        """Directions that no bound holds."""
        return int(np.count_nonzero(~self.at_low & ~self.at_high))


def box_minimum(
    slopes: Float[np.ndarray, " n"],
    gram: Float[np.ndarray, "n n"],
    price: float,
    low: float = -1.0,
    high: float = 1.0,
) -> Box:
    """min gᵀε + ½ρ εᵀFε over low ≤ ε ≤ high, by projected Newton steps (Bertsekas 1982); exact to rounding.

    `gram` is made definite by 1e-9 of its mean diagonal. Raises BadRequest for a price ρ that is not positive.
    """
    if not price > 0:
        raise BadRequest(f"expected a positive price of side effects, got {price:g}")
    n = len(slopes)
    hessian = price * (gram + np.eye(n) * (1e-9 * max(float(np.trace(gram)) / n, 1e-300)))
    epsilon = np.clip(np.zeros(n), low, high)
    for _ in range(_STEPS):
        slope = slopes + hessian @ epsilon
        held = ((epsilon <= low) & (slope > 0)) | ((epsilon >= high) & (slope < 0))
        free = ~held
        if not free.any() or np.abs(slope[free]).max() <= EXACT * (1e-300 + np.abs(slopes).max()):
            break
        step = np.zeros(n)
        step[free] = -np.linalg.solve(hessian[np.ix_(free, free)], slope[free])
        epsilon = _along(epsilon, step, slope, hessian, low, high)
    return Box(epsilon, epsilon <= low, epsilon >= high)


def _along(
    epsilon: Float[np.ndarray, " n"],
    step: Float[np.ndarray, " n"],
    slope: Float[np.ndarray, " n"],
    hessian: Float[np.ndarray, "n n"],
    low: float,
    high: float,
) -> Float[np.ndarray, " n"]:
    """The first point on the projected ray, halving the step, at which the objective falls enough (Armijo)."""
    length = 1.0
    while True:
        moved = np.clip(epsilon + length * step, low, high)
        way = moved - epsilon
        if slope @ way + 0.5 * way @ hessian @ way <= 1e-4 * (slope @ way) or length < _SHORTEST:
            return moved
        length /= 2
