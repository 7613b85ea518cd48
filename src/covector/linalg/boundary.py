"""Where a number changes its sign on the way between two points, and what a piecewise linear layer does on that way.

Source: theory page §1.3, §1.4, §4.3 (OP-7, OP-19).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from covector.axes import Float
from covector.errors import BadRequest

# How finely the place of a root is found, as a share of the way.
PLACE = 1e-12


@dataclass(frozen=True)
class Root:
    """A sign change at low + t (high − low): its place t in [0, 1], and how often the function was asked."""

    t: float
    calls: int


def between(
    value: Callable[[Float[np.ndarray, " d"]], float], low: Float[np.ndarray, " d"], high: Float[np.ndarray, " d"]
) -> Root:
    """A point on the straight way from `low` to `high` where `value` is 0: bracketed, found to 1e-12 of the way.

    There may be others; this is one of an odd number. Raises BadRequest, "no sign change", where both ends lie on one
    side: then there need not be any, and none is made up.
    """
    ends = value(low), value(high)
    if ends[0] * ends[1] > 0 or not np.all(np.isfinite(ends)):
        raise BadRequest(
            f"no sign change between the two points: {ends[0]:.4g} and {ends[1]:.4g}; choose two prompts on different "
            "sides of the boundary"
        )
    if not ends[0] * ends[1]:
        return Root(0.0 if not ends[0] else 1.0, 2)
    t, found = brentq(lambda t: value(low + t * (high - low)), 0.0, 1.0, xtol=PLACE, maxiter=500, full_output=True)
    return Root(float(t), 2 + found.function_calls)


def to_norm_boundary(
    x: Float[np.ndarray, " d"], w: Float[np.ndarray, " d"], offset: float, *, centre: bool, eps: float
) -> Float[np.ndarray, " d"]:
    """The point on x + span(w) where w·c/σ + offset = 0, c the centred row, σ its norm's scale; in closed form.

    `w` is the functional behind the gain, centred where `centre`. With offset 0 it is the point nearest to x, its
    projection on w·x = 0; there exact and frozen stand-ins agree (OP-7). Exact.
    Raises BadRequest, "no sign change", where |offset| ≥ √d‖w‖: the norm bounds the functional, which has one sign.
    """
    w = w - w.mean() if centre else w
    c, d, length = x - x.mean() if centre else x, len(x), float(w @ w)
    if offset * offset >= d * length:
        raise BadRequest(
            f"no sign change: the constant {offset:.4g} is beyond √d‖w‖ = {np.sqrt(d * length):.4g}, which bounds what "
            "the norm lets through; there is no boundary"
        )
    along = float(c @ w) / length
    beside = c - along * w
    # w·c = −offset σ with c = beside + s w, σ² = (‖beside‖² + s²‖w‖²)/d + eps.
    size = np.sqrt(offset**2 * (beside @ beside / d + eps) / (length**2 - offset**2 * length / d))
    return x + (-np.sign(offset) * size - along) * w


@dataclass(frozen=True, eq=False)
class Pieces:
    """The linear pieces of a layer on the way from one point to another.

    ``at`` [pieces + 1] their ends, from 0 to 1; ``open`` [pieces, d_mlp] which units are open (positive) on each.
    """

    at: Float[np.ndarray, " m"]
    open: Float[np.ndarray, "r d_mlp"]

    @property
    def lengths(self) -> Float[np.ndarray, " r"]:
        """Share of the way that each piece takes."""
        return np.diff(self.at)

    @property
    def mean(self) -> Float[np.ndarray, " d_mlp"]:
        """Share of the way on which each unit is open: for ReLU its secant slope, exactly."""
        return self.lengths @ self.open


def pieces(low: Float[np.ndarray, " d_mlp"], high: Float[np.ndarray, " d_mlp"]) -> Pieces:
    """Pieces on the way between two pre-activations, by where units change their sign. Exact.

    Each unit crosses 0 at most once, at t = low/(low − high).
    """
    crosses = (low > 0) != (high > 0)
    t = low[crosses] / (low[crosses] - high[crosses])
    at = np.unique(np.concatenate([[0.0], t[(t > 0) & (t < 1)], [1.0]]))
    middle = 0.5 * (at[1:] + at[:-1])
    return Pieces(at, (low + middle[:, None] * (high - low) > 0).astype(np.float64))


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centres of groups of rows; a row belongs to the nearest."""

    centres: Float[np.ndarray, "k d"]

    def of(self, rows: Float[np.ndarray, "n d"]) -> np.ndarray:
        """The group of each row."""
        squares = np.sum(self.centres**2, axis=1) - 2 * rows @ self.centres.T
        return np.argmin(squares, axis=1)


def clusters(rows: Float[np.ndarray, "n d"], k: int, rng: np.random.Generator, steps: int = 30) -> Clusters:
    """k-means (Lloyd's steps from k-means++ starts); a group that empties keeps its centre."""
    if not 1 <= k <= len(rows):
        raise BadRequest(f"expected 1 to {len(rows)} groups of {len(rows)} rows, got {k}")
    centres = rows[[int(rng.integers(len(rows)))]]
    nearest = np.full(len(rows), np.inf)
    while len(centres) < k:
        nearest = np.minimum(nearest, np.sum((rows - centres[-1]) ** 2, axis=1))
        total = nearest.sum()
        chosen = rng.choice(len(rows), p=nearest / total) if total > 0 else rng.integers(len(rows))
        centres = np.concatenate([centres, rows[[int(chosen)]]])
    found = Clusters(centres)
    for _ in range(steps):
        group = found.of(rows)
        new = np.stack(
            [rows[group == i].mean(axis=0) if np.any(group == i) else c for i, c in enumerate(found.centres)]
        )
        if np.array_equal(new, found.centres):
            break
        found = Clusters(new)
    return found
