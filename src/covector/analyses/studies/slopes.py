"""How a share or a mean changes from model to model: a slope with what sites leave open, and what models leave open.

Source: `docs/theory/studies.md`, equations 1–2 and 12; Zou and Donner, Statistics in Medicine 27 (2008), for the
interval over sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.axes import Float, Int
from covector.linalg.chance.clustered import FEWEST, clustered_share, variance_of_mean, worth


@dataclass(frozen=True)
class Slope:
    """Change per step of x: with its interval over sites within models, and over models where there are three.

    NaN for ends that are not known.
    """

    value: float
    low: float
    high: float
    models_low: float
    models_high: float

    @property
    def has_sites(self) -> bool:
        """Whether every model has sites enough for an interval over them."""
        return self.low == self.low

    @property
    def has_models(self) -> bool:
        """Whether there are models enough for an interval over them, which is then the one to quote."""
        return self.models_low == self.models_low

    @property
    def verdict(self) -> str:
        """falls, rises, or neither beyond the interval to quote; that nothing can be said where there is none."""
        if not (self.has_models or self.has_sites):
            return "cannot be told from no change (too few sites in a model)"
        low, high = (self.models_low, self.models_high) if self.has_models else (self.low, self.high)
        return "falls" if high < 0 else "rises" if low > 0 else "does not change beyond its interval"

    def words(self, scale: float = 1.0, unit: str = "", *, digits: int = 1, per: str = "") -> str:
        """The slope with its intervals, times `scale`, as sentences quote it."""

        def ends(low: float, high: float) -> str:
            return f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}"

        over = [
            f"{ends(self.low, self.high)} over sites" if self.has_sites else "too few sites in a model for an interval"
        ]
        if self.has_models:
            over.append(f"{ends(self.models_low, self.models_high)} over models")
        return f"{scale * self.value:+.{digits}f}{unit}{per} ({', '.join(over)})"


@dataclass(frozen=True, eq=False)
class Clustered:
    """Values of one model's directions (truth values or numbers) with the site of each."""

    values: np.ndarray
    unit: Int[np.ndarray, " n"]

    def interval(self) -> tuple[float, float]:
        """95 % for the mean, sites as clusters: `clustered_share` of truth values, Student's of numbers.

        Student's has the degrees of freedom of as many sites of one size as these are worth. NaN where that is fewer
        than two, and for a single site.
        """
        _, at = np.unique(self.unit, return_inverse=True)
        sizes = np.bincount(at).astype(np.float64)
        if len(sizes) < FEWEST or (self.values.dtype != bool and worth(sizes) < FEWEST):
            return float("nan"), float("nan")
        if self.values.dtype == bool:
            share = clustered_share(self.values, self.unit)
            return share.low, share.high
        error = np.sqrt(variance_of_mean(np.bincount(at, self.values), sizes))
        mean, reach = float(self.values.mean()), float(special.stdtrit(worth(sizes) - 1, 0.975) * error)
        return mean - reach, mean + reach


def slope(x: Float[np.ndarray, " n"], models: Sequence[Clustered]) -> Slope:
    """Least-squares slope of the models' means on x; intervals over sites within models, and Student's over models.

    The one over sites puts together the intervals of the models' means (equation 12), so that a model of few sites, or
    without a single find, is as uncertain here as it is alone; cautious for few sites (95 to 100 % measured, for 95 %).
    """
    y = np.array([m.values.mean() for m in models])
    centred = x - x.mean()
    value = float(y @ centred / (centred @ centred))
    low, high = _over_sites(y, np.array([m.interval() for m in models]), centred / (centred @ centred))
    over = (float("nan"), float("nan"))
    if len(models) > 2:
        left = y - y.mean() - value * centred
        error = np.sqrt(left @ left / (len(x) - 2) / (centred @ centred))
        reach = float(special.stdtrit(len(x) - 2, 0.975) * error)
        over = (value - reach, value + reach)
    return Slope(value, low, high, *over)


def _over_sites(
    y: Float[np.ndarray, " n"], ends: Float[np.ndarray, "n 2"], weight: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """Interval of the sum of weight·y from an interval of each; a weight of 0 leaves its model out."""
    at = weight != 0
    reach = np.abs(weight[at, None] * (ends[at] - y[at, None]))
    down = np.where(weight[at] > 0, reach[:, 0], reach[:, 1])
    up = np.where(weight[at] > 0, reach[:, 1], reach[:, 0])
    value = float(weight @ y)
    return value - float(np.linalg.norm(down)), value + float(np.linalg.norm(up))
