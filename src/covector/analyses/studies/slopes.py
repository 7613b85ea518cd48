"""How a share or a mean changes from model to model: a slope with what sites leave open, and what models leave open.

Source: `docs/theory/studies.md`, equation 12.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.axes import Float, Int


@dataclass(frozen=True)
class Slope:
    """Change per step of x: with its interval over sites within models, and over models where there are three."""

    value: float
    low: float
    high: float
    models_low: float
    models_high: float

    @property
    def has_models(self) -> bool:
        """Whether there are models enough for an interval over them, which is then the one to quote."""
        return self.models_low == self.models_low

    @property
    def verdict(self) -> str:
        """falls, rises, or neither beyond the interval to quote."""
        low, high = (self.models_low, self.models_high) if self.has_models else (self.low, self.high)
        return "falls" if high < 0 else "rises" if low > 0 else "does not change beyond its interval"


@dataclass(frozen=True, eq=False)
class Clustered:
    """Values of one model's directions (truth values or numbers) with the site of each."""

    values: np.ndarray
    unit: Int[np.ndarray, " n"]


def slope(x: Float[np.ndarray, " n"], models: Sequence[Clustered], *, draws: int, rng: np.random.Generator) -> Slope:
    """Least-squares slope of the models' means on x; sites resampled within models, Student's interval over models."""
    y = np.array([m.values.mean() for m in models])
    resampled = np.stack([_resampled(m, draws, rng) for m in models], axis=1)
    value = float(_fit(x, y[None])[0])
    low, high = np.quantile(_fit(x, resampled), [0.025, 0.975])
    over = (float("nan"), float("nan"))
    if len(models) > 2:
        left = y - y.mean() - value * (x - x.mean())
        error = np.sqrt(left @ left / (len(x) - 2) / ((x - x.mean()) @ (x - x.mean())))
        reach = float(special.stdtrit(len(x) - 2, 0.975) * error)
        over = (value - reach, value + reach)
    return Slope(value, float(low), float(high), *over)


def _fit(x: Float[np.ndarray, " n"], y: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
    centred = x - x.mean()
    return y @ centred / (centred @ centred)


def _resampled(model: Clustered, draws: int, rng: np.random.Generator) -> Float[np.ndarray, " draws"]:
    """Means with the sites of a model drawn again."""
    _, at = np.unique(model.unit, return_inverse=True)
    sizes, sums = np.bincount(at), np.bincount(at, model.values)
    drawn = rng.integers(0, len(sizes), (draws, len(sizes)))
    return sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
