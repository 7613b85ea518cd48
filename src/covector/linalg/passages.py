"""Correlation over places that come in passages: places of one passage are not separate pieces of evidence.

Source: `docs/theory/fires.md`, equations 5–6; Efron and Stein, "The jackknife estimate of variance" (1981).
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.axes import Float, Int
from covector.linalg.agreement import correlation
from covector.linalg.chance import monte_carlo_p
from covector.linalg.chance.streams import Seed, generator

NAN = float("nan")


@dataclass(frozen=True)
class Association:
    """Pearson's `r` over `n` places of so many `passages`, and its square.

    `low` and `high` bound `r2` (jackknife over passages of Fisher's z); `p` is the chance of an r² this large where
    passages are shuffled against each other. NaN where one of the two does not vary; the interval also below three
    passages, p also where no two passages are equally long.
    """

    r: float
    low: float
    high: float
    p: float
    n: int
    passages: int

    @property
    def r2(self) -> float:
        """The share of the variance of one that a straight line in the other accounts for."""
        return self.r**2


def association(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    passage: Int[np.ndarray, " n"],
    *,
    draws: int,
    seed: Seed,
    level: float = 0.95,
) -> Association:
    """How well x says y over places, with passages as the pieces of evidence; float64.

    The shuffle pairs the x of a passage with the y of another that is equally long, place by place, so that what a
    place in a passage does by itself, and how places of a passage hang together, stay as they are: exact where
    passages are exchangeable. A passage of a length of its own stays where it is. Equations 5 and 6.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    r, (numbers, at) = correlation(x, y), np.unique(passage, return_inverse=True)
    if np.isnan(r):
        return Association(NAN, NAN, NAN, NAN, len(x), len(numbers))
    a, b = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    low, high = _interval(a, b, at, level)
    return Association(r, low, high, _p(a, b, at, draws, seed), len(x), len(numbers))


def each_r2(values: Float[np.ndarray, "n r"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " r"]:
    """Squared correlation of every column with y, one column at a time; 0 for a column that does not vary."""
    r = np.array([correlation(np.asarray(column, dtype=np.float64), y) for column in values.T])
    return np.nan_to_num(r) ** 2


def _interval(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], at: Int[np.ndarray, " n"], level: float
) -> tuple[float, float]:
    """Of r²: t interval of z = artanh r with the jackknife's variance; from 0 where that of r holds 0."""
    sums = np.array([np.bincount(at, weights=v) for v in (np.ones(len(a)), a, b, a * a, b * b, a * b)])
    k = sums.shape[1]
    if k < 3:
        return NAN, NAN
    n, sa, sb, saa, sbb, sab = sums.sum(axis=1, keepdims=True) - sums
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (n * sab - sa * sb) / np.sqrt((n * saa - sa**2) * (n * sbb - sb**2))
    if not np.isfinite(r).all():  # without one passage nothing varies
        return NAN, NAN
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    middle = np.arctanh(np.clip(float(a @ b) / len(a), -1 + 1e-15, 1 - 1e-15))
    width = special.stdtrit(k - 1, (1 + level) / 2) * np.sqrt((k - 1) / k * np.sum((z - z.mean()) ** 2))
    ends = np.tanh([middle - width, middle + width])
    low = 0.0 if ends[0] < 0 < ends[1] else float(np.min(ends**2))
    return low, float(np.max(ends**2))


def _p(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], at: Int[np.ndarray, " n"], draws: int, seed: Seed
) -> float:
    places = [np.flatnonzero(at == i) for i in range(at.max() + 1)]
    lengths = np.array([len(p) for p in places])
    alike = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    moved = [np.array([places[i] for i in group]) for group in alike if len(group) > 1]
    if not moved:
        return NAN
    fixed = np.setdiff1d(np.arange(len(a)), np.concatenate([m.ravel() for m in moved]))
    kept = float(a[fixed] @ b[fixed])
    # Sum over places of x in passage i with y in passage j: every shuffle adds up some of its entries.
    products = [a[m] @ b[m].T for m in moved]
    rng, null = generator(seed, "passages"), np.empty(draws)
    for draw in range(draws):
        total = sum(float(m[np.arange(len(m)), rng.permutation(len(m))].sum()) for m in products)
        null[draw] = abs(kept + total)
    observed = abs(kept + sum(float(np.trace(m)) for m in products))
    return float(monte_carlo_p(observed * (1 - 1e-12), null).value)
