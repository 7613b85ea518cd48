"""Readings of inputs by the heads' features, and what couplings say of them: slopes, r², and theorem 2's interval.

Source: `docs/theory/observables.md`, equation 12; theory page §1.6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float

# Heads whose attribution to the first task is below this share of the largest have no ratio worth comparing.
NOTICEABLE = 0.05
NORMAL_95 = 1.959964


@dataclass(frozen=True, eq=False)
class Readings:
    """Readings of inputs by the heads' features, ``values`` [head, task, input]; ``squares`` [head, input] are ‖x̂‖²."""

    values: Float[np.ndarray, "head task n"]
    squares: Float[np.ndarray, "head n"]
    labels: tuple[str, ...]

    def regression(self, i: int, j: int) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
        """(slope, r²) per head of task j's reading on task i's, with intercept; NaN where there is nothing to fit.

        The slope is C_Σ with Σ the covariance of the inputs: y Σ y' is the covariance of the readings y·x and y'·x.
        """
        x, y = self.values[:, i], self.values[:, j]
        if x.shape[1] < 3:
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
        one, two, both = np.sum(x * x, axis=1), np.sum(y * y, axis=1), np.sum(x * y, axis=1)
        none = np.full(len(x), np.nan)
        slope = np.divide(both, one, out=none.copy(), where=one > 0)
        return slope, np.divide(both**2, one * two, out=none, where=one * two > 0)


def within(
    found: Sequence[Readings],
    i: int,
    j: int,
    features: Float[np.ndarray, "task head d"],
    free: Sequence[int],
) -> Float[np.ndarray, " head"]:
    """Share of inputs whose reading of task j is in theorem 2's mean ± 1.96 deviations, given its reading of task i.

    Each at its own length, in `free` dimensions per head. 0.95 for inputs even in all directions, up to the difference
    between a coordinate of a sphere and a normal one.
    """
    one, two = features[i], features[j]
    a2, b2, ab = np.sum(one**2, axis=1), np.sum(two**2, axis=1), np.sum(one * two, axis=1)
    k = np.concatenate([r.values[:, i] for r in found], axis=1)
    y = np.concatenate([r.values[:, j] for r in found], axis=1)
    s2 = np.concatenate([r.squares for r in found], axis=1)
    rest = np.maximum(s2 - k**2 / a2[:, None], 0.0)
    across = np.maximum(b2 - ab**2 / a2, 0.0) / (np.asarray(free) - 1)
    off = np.abs(y - k * (ab / a2)[:, None])
    # Rounding: features that are one leave no deviation at all.
    return np.mean(off <= NORMAL_95 * np.sqrt(rest * across[:, None]) + 1e-9 * np.sqrt(b2[:, None] * s2), axis=1)


def ratio(one: Float[np.ndarray, " head"], two: Float[np.ndarray, " head"]) -> Float[np.ndarray, " head"]:
    """Two over one, NaN where |one| is below NOTICEABLE of its largest: a ratio over next to nothing says nothing."""
    kept = np.abs(one) >= NOTICEABLE * np.max(np.abs(one), initial=0.0)
    return np.divide(two, one, out=np.full(len(one), np.nan), where=kept & (one != 0))
