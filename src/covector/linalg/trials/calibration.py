"""Does an agent that is asked for more return bring more? Slope and rank correlation over target returns.

Source: `docs/theory/rollouts.md`, equation 25.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.stats import rankdata

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.trials.resample import BLOCK, DRAWS, LEVEL, ROUNDING, bca, counts, finite, in_range

# Orders of up to so many targets are listed once, and one is drawn for each seed.
TABLED = 6


@dataclass(frozen=True, eq=False)
class Calibration:
    """`slope` of achieved on asked return (1 is what was asked) with its ends; `p` that asking makes no difference.

    `rank`: Spearman's correlation of the targets with the mean returns, with its ends; `mean` achieved at each target.
    """

    asked: Float[np.ndarray, " target"]
    mean: Float[np.ndarray, " target"]
    slope: float
    low: float
    high: float
    p: float
    rank: float
    rank_low: float
    rank_high: float


def calibration(
    asked: Float[np.ndarray, " target"],
    achieved: Float[np.ndarray, "target n"],
    *,
    shared: bool = True,
    draws: int = DRAWS,
    seed: Seed = 0,
    level: float = LEVEL,
) -> Calibration:
    """Least squares over targets and episodes, n episodes per target; only the targets given are spoken of.

    `shared`: column s is one seed under every target. Then seeds are resampled whole, and p shuffles targets within
    seeds; else episodes are resampled within each target, and p shuffles them between targets. p (two-sided, of the
    slope, (1 + #)/(draws + 1)) is exact if targets are exchangeable; the slope's interval is BCa, that of the rank
    correlation the percentiles (NaN left out where all means tie). Raises BadRequest for fewer than two different
    targets or values that are not finite.
    """
    in_range(draws, level)
    finite(achieved)
    number = len(achieved)
    if len(asked) != number or len(np.unique(asked)) < 2 or not np.all(np.isfinite(asked)):
        raise BadRequest(f"expected two or more different targets with a row of episodes each, got {asked.tolist()}")
    centred = asked - asked.mean()
    weight = centred / (centred @ centred)
    mean = achieved.mean(axis=1)
    own = achieved - mean[:, None]
    drawn = _means(own, shared, draws, seed)
    influence = weight @ own if shared else (weight[:, None] * own).ravel()
    slope = float(weight @ mean)
    low, high = bca(drawn @ weight, np.array(0.0), influence, level)
    # Means that differ by rounding are ties.
    size = max(float(np.abs(achieved).max()), 1e-300)
    ranks = _rank_correlations(asked, np.round(np.vstack([mean, drawn + mean]) / size, 11))
    value, ranks = float(ranks[0]), ranks[1:]
    ends = np.nanquantile(ranks, [(1 - level) / 2, (1 + level) / 2]) if np.isfinite(ranks).any() else (np.nan, np.nan)
    p = _p(achieved, weight, shared, draws, seed)
    return Calibration(
        asked, mean, slope, slope + float(low), slope + float(high), p,
        value, float(ends[0]), float(ends[1]),
    )  # fmt: skip


def _means(
    own: Float[np.ndarray, "target n"], shared: bool, draws: int, seed: Seed
) -> Float[np.ndarray, "draws target"]:
    number, n = own.shape
    if shared:
        return np.concatenate([c @ own.T for c in counts(n, draws=draws, seed=seed)]) / n
    base = (seed,) if isinstance(seed, int) else seed
    columns = [np.concatenate([c @ own[i] for c in counts(n, draws=draws, seed=(*base, i))]) / n for i in range(number)]
    return np.stack(columns, axis=1)


def _rank_correlations(asked: np.ndarray, means: Float[np.ndarray, "draws target"]) -> Float[np.ndarray, " draws"]:
    """Spearman's correlation of the targets with each row; NaN where a row does not vary."""
    a, b = rankdata(asked) - (len(asked) + 1) / 2, rankdata(means, axis=1) - (len(asked) + 1) / 2
    size = np.sqrt(float(a @ a) * np.sum(b * b, axis=1))
    return np.divide(b @ a, size, out=np.full(len(b), np.nan), where=size > 0)


def _p(achieved: np.ndarray, weight: np.ndarray, shared: bool, draws: int, seed: Seed) -> float:
    size = ROUNDING * float(np.abs(weight).sum() * np.abs(achieved).sum(axis=1).max())
    least = abs(float((weight @ achieved).sum())) - size
    reached = 0
    for block, first in enumerate(range(0, draws, BLOCK // 10)):
        sums = _shuffled(achieved, weight, shared, generator(seed, "trials targets", block))
        reached += int(np.sum(np.abs(sums[: draws - first]) >= least))
    return (1 + reached) / (1 + draws)


def _shuffled(achieved: np.ndarray, weight: np.ndarray, shared: bool, rng: np.random.Generator) -> np.ndarray:
    """A tenth of a block of Σ weight·achieved with the targets in random order."""
    many, (number, n) = BLOCK // 10, achieved.shape
    if not shared:
        return np.repeat(weight, n)[rng.random((many, number * n)).argsort(axis=1)] @ achieved.ravel()
    if number <= TABLED:
        each = np.array(list(permutations(weight.tolist()))) @ achieved
        return each[rng.integers(len(each), size=(many, n)), np.arange(n)].sum(axis=1)
    return np.einsum("dnk,kn->d", weight[rng.random((many, n, number)).argsort(axis=2)], achieved)
