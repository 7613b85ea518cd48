"""How well one list of numbers says another: slope, correlations, and how well it tells two classes apart."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from covector.axes import Bool, Float


@dataclass(frozen=True)
class Agreement:
    """`slope` of y on x through the origin, `r2` their squared correlation, `rank` their rank correlation; `n` points.

    NaN where one of them does not vary.
    """

    slope: float
    r2: float
    rank: float
    n: int

    def __str__(self) -> str:
        return f"slope {self.slope:.2f}, r² {self.r2:.2f}, rank correlation {self.rank:.2f}"


def agreement(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Agreement:
    """How well x (predicted) says y (measured)."""
    r = correlation(x, y)
    slope = float(x @ y / (x @ x)) if np.any(x) else float("nan")
    return Agreement(slope, r * r, rank_correlation(x, y), len(x))


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson's, NaN where one of the two varies by no more than rounding."""
    for v in (x, y):
        if len(v) < 2 or np.ptp(v) <= 1e-12 * np.abs(v).max(initial=0.0):
            return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Spearman's, ties by their mean rank."""
    return correlation(rankdata(x), rankdata(y))


def separation(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties by half; NaN without both."""
    ones, n = int(positive.sum()), len(scores)
    if not 0 < ones < n:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - ones * (ones + 1) / 2) / (ones * (n - ones)))
