"""Paired differences: are they as often above zero as below, and how large are they in the middle?

Wilcoxon's signed-rank test with the Hodges–Lehmann estimate that belongs to it: the median of all pairwise means, and
the interval of shifts that the test would not reject.

Source: `docs/theory/studies.md`, equation 4.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from covector.axes import Float
from covector.errors import BadRequest

# The law of the rank sum is counted exactly up to this many pairs; beyond, the normal law is off by less than 1e-4.
EXACT = 60


@dataclass(frozen=True)
class SignedRank:
    """`centre` (Hodges–Lehmann) of n differences with its interval, and the two-sided p that they centre on zero."""

    n: int
    centre: float
    low: float
    high: float
    p: float


def signed_rank(differences: Float[np.ndarray, " n"], level: float = 0.95) -> SignedRank:
    """Test that differences (NaN left out) lie symmetrically around zero.

    Exact for up to 60 pairs without ties, else by the normal law. The interval is NaN where so few pairs (five or fewer
    at 95 %) allow none; everything is NaN for no pairs. Raises BadRequest for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise BadRequest(f"a level lies in (0, 1), got {level}; 0.95 is customary")
    kept = differences[np.isfinite(differences)].astype(np.float64)
    n, nothing = len(kept), float("nan")
    if not n:
        return SignedRank(0, nothing, nothing, nothing, nothing)
    first, second = np.triu_indices(n)
    means = np.sort((kept[first] + kept[second]) / 2)
    skipped = _skipped(n, (1 - level) / 2)
    low, high = (nothing, nothing) if skipped is None else (float(means[skipped]), float(means[-1 - skipped]))
    return SignedRank(n, float(np.median(means)), low, high, _p(kept))


def _p(kept: Float[np.ndarray, " n"]) -> float:
    if not kept.any():
        return 1.0
    sizes = np.abs(kept)
    tied = len(np.unique(sizes)) < len(sizes) or not sizes.all()
    method = "exact" if len(kept) <= EXACT and not tied else "asymptotic"
    found = stats.wilcoxon(kept, zero_method="zsplit", correction=method != "exact", method=method)
    return min(1.0, float(np.array(found, np.float64)[1]))


def _skipped(n: int, alpha: float) -> int | None:
    """How many of the smallest pairwise means lie outside the interval; None where it would have to hold all and more.

    The largest c with P(W <= c) <= alpha, W the sum of the ranks of the positive ones: W counts pairwise means above 0.
    """
    if n <= EXACT:
        counts = np.ones(1)
        for rank in range(1, n + 1):
            counts = np.pad(counts, (0, rank)) + np.pad(counts, (rank, 0))
        c = int(np.searchsorted(np.cumsum(counts / 2.0**n), alpha, side="right"))
        return c - 1 if c else None
    mean, sd = n * (n + 1) / 4, np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return int(np.floor(mean + special.ndtri(alpha) * sd - 0.5))
