"""Are p-values smaller than chance makes them? The one-sided distance of their law from the uniform one.

One-sided because p-values may be upper bounds, or counted among few draws: both only move them up, so that an excess of
small ones still means something and a lack of them does not.

Source: `docs/theory/studies.md`, equations 5–6; Smirnov 1944 for the law of the distance.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.axes import Float
from covector.errors import BadRequest


@dataclass(frozen=True)
class Excess:
    """D⁺ = max_x [F(x) − x] of n p-values, where it is reached, and the probability of as much by chance."""

    distance: float
    at: float
    p: float
    n: int


def excess_of_small(p: Float[np.ndarray, " n"], effective: float | None = None) -> Excess:
    """How far small p-values are in excess of uniform ones (NaN left out).

    `effective` is the number of independent ones that they are worth, if fewer than n (p-values of one head that share
    B null draws are worth n·B/(n + B)). The p is exact for independent uniform p-values, an upper bound for values
    that are stochastically larger. NaN for none. Raises BadRequest for p outside [0, 1] or effective < 1.
    """
    kept = np.sort(p[~np.isnan(p)])
    n, nothing = len(kept), float("nan")
    if not n:
        return Excess(nothing, nothing, nothing, 0)
    worth = n if effective is None else min(int(effective), n)
    if kept[0] < 0 or kept[-1] > 1 or worth < 1:
        raise BadRequest(f"expected p-values in [0, 1], worth one or more, got {kept[0]:g} to {kept[-1]:g}, {worth}")
    above = np.arange(1, n + 1) / n - kept
    best = int(above.argmax())
    distance = max(0.0, float(above[best]))
    return Excess(distance, float(kept[best]), float(special.smirnov(worth, distance)), n)
