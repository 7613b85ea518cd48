"""A probability found by simulation, with the error that simulation leaves."""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.beta import Number


@dataclass(frozen=True, eq=False)
class Estimate:
    """A Monte-Carlo value with its standard error (same shape and unit) and the number of draws behind it."""

    value: Number
    error: Number
    draws: int


def monte_carlo_p(observed: Number, null: Float[np.ndarray, " draws"], *, at_most: Number | None = None) -> Estimate:
    """How often the null reaches each observed statistic: p = (1 + #{null >= observed}) / (draws + 1).

    Returns p in the shape of `observed` with its binomial standard error; ties count, NaN stays NaN. One null serves
    any number of observations (O(log draws) each). The smallest p is 1/(draws + 1) (SV-33).
    `at_most` is a rigorous upper bound of the same probability (a union of exact tails): where it is the smaller, it
    replaces p, with error 0, so tails beyond 1/draws are reported by the bound instead of at the floor.
    Raises BadRequest if the null is empty or not finite.
    """
    if len(null) == 0 or not np.all(np.isfinite(null)):
        raise BadRequest(f"a null needs draws, all finite, got {len(null)}; draw at least 1000")
    draws = len(null)
    statistic = np.asarray(observed, dtype=np.float64)
    reached = draws - np.searchsorted(np.sort(null), statistic, side="left")
    p = np.where(np.isnan(statistic), np.nan, (1 + reached) / (draws + 1))
    error = np.sqrt(p * (1 - p) / draws)
    if at_most is not None:
        beyond = np.asarray(at_most) < p
        p, error = np.where(beyond, at_most, p), np.where(beyond, 0.0, error)
    return Estimate(p[()], error[()], draws)
