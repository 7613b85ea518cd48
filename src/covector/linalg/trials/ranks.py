"""Does a score of the weights say what editing does? Spearman's correlation over sites, with interval and p.

Source: `docs/theory/rollouts.md`, equation 26.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.stats import rankdata

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.agreement import rank_correlation
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.trials.resample import BLOCK, DRAWS, LEVEL, ROUNDING, bca, counts, in_range

# All orders are tried for up to so many sites.
ORDERED = 7


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's `value` over `n` sites, BCa ends over `clusters` of them, and the two-sided `p` of no relation."""

    n: int
    clusters: int
    value: float
    low: float
    high: float
    p: float


def rank_correlation_interval(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"] | None = None,
    strata: Int[np.ndarray, " n"] | None = None,
    *,
    draws: int = DRAWS,
    seed: Seed = 0,
    level: float = LEVEL,
) -> RankCorrelation:
    """Spearman's correlation of a score and an effect over sites, ties by their mean rank.

    The interval resamples sites, or whole `clusters` of them (dyads of one matrix depend on each other); approximate.
    p shuffles y over all sites, or within `strata` only (layers, kinds): exact if sites of a stratum are exchangeable
    under the null, by all orders for up to 7 sites without strata, else (1 + #)/(draws + 1). Noise in the
    effects pulls the correlation towards 0. NaN where x or y does not vary. Raises BadRequest for fewer than 3 sites or
    values that are not finite.
    """
    in_range(draws, level)
    n = len(x)
    if n < 3 or n != len(y) or not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise BadRequest(f"expected a finite score and effect at 3 or more sites, got {n} scores and {len(y)} effects")
    value = rank_correlation(x, y)
    names, at = np.unique(np.arange(n) if clusters is None else clusters, return_inverse=True)
    if np.isnan(value):
        return RankCorrelation(n, len(names), value, value, value, value)
    low, high = value, value
    if len(names) > 1:
        boot = np.concatenate([weighted(x, y, c[:, at]) for c in counts(len(names), draws=draws, seed=seed)])
        without = weighted(x, y, (1.0 - np.eye(len(names)))[:, at])
        influence = np.nan_to_num(np.nanmean(without) - without)
        low, high = (float(end) for end in bca(boot, np.array(value), influence, level))
    else:
        low = high = float("nan")
    return RankCorrelation(n, len(names), value, low, high, _p(x, y, strata, draws, seed))


def weighted(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], weight: Float[np.ndarray, "draws n"]
) -> Float[np.ndarray, " draws"]:
    """Spearman's correlation of each weighted sample, as if every site came so many times; NaN where nothing varies."""
    total = weight.sum(axis=1, keepdims=True)
    a, b = (_ranks(v, weight) for v in (x, y))
    a, b = (r - np.sum(weight * r, axis=1, keepdims=True) / total for r in (a, b))
    size = np.sqrt(np.sum(weight * a**2, axis=1) * np.sum(weight * b**2, axis=1))
    cross = np.sum(weight * a * b, axis=1)
    return np.divide(cross, size, out=np.full(len(weight), np.nan), where=size > ROUNDING * total[:, 0] ** 3)


def _ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weight below each value and half of its own ties'."""
    order = np.argsort(values, kind="stable")
    held = values[order]
    new = np.append(True, held[1:] != held[:-1])
    each = np.add.reduceat(weight[:, order], np.flatnonzero(new), axis=1)
    place = np.empty(len(values), dtype=int)
    place[order] = np.cumsum(new) - 1
    return (np.cumsum(each, axis=1) - each / 2)[:, place]


def _p(x: np.ndarray, y: np.ndarray, strata: np.ndarray | None, draws: int, seed: Seed) -> float:
    a, b = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(x) + 1) / 2
    least = abs(float(a @ b)) - ROUNDING * float(np.abs(a) @ np.abs(b))
    if strata is None and len(x) <= ORDERED:
        null = np.array(list(permutations(b.tolist()))) @ a
        return float(np.mean(np.abs(null) >= least))
    groups = [np.arange(len(x))] if strata is None else [np.flatnonzero(strata == s) for s in np.unique(strata)]
    if strata is not None:
        # What strata have in common stays in every shuffle: only what is left inside them is judged.
        for group in groups:
            a[group] -= a[group].mean()
        least = abs(float(a @ b)) - ROUNDING * float(np.abs(a) @ np.abs(b))
    reached = 0
    for block, first in enumerate(range(0, draws, BLOCK)):
        rng, many = generator(seed, "trials sites", block), min(BLOCK, draws - first)
        null = np.zeros(BLOCK)
        for group in groups:
            null += rng.permuted(np.tile(b[group], (BLOCK, 1)), axis=1) @ a[group]
        reached += int(np.sum(np.abs(null[:many]) >= least))
    return (1 + reached) / (1 + draws)
