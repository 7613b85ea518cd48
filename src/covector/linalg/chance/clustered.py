"""Shares and differences of things that come in clusters: directions of one head are not separate pieces of evidence.

Source: `docs/theory/studies.md`, equations 1–3; Korn and Graubard, "Confidence intervals for proportions with small
expected number of positive counts estimated from survey data" (1998), for the interval.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator


@dataclass(frozen=True)
class Share:
    """A share of n, its interval, and how many times clustering makes its variance larger (`design`, 1 or more)."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    design: float


NOTHING = Share(float("nan"), float("nan"), float("nan"), 0, 0, float("nan"))
# A spread over clusters needs two of them that hold the rarer outcome.
FEWEST = 2


def clustered_share(hits: Bool[np.ndarray, " n"], cluster: Int[np.ndarray, " n"], level: float = 0.95) -> Share:
    """The share of `hits`, with an interval that takes clusters, not single hits, for the independent pieces.

    The interval is Clopper's and Pearson's at an effective number of tries: n / design, reduced further where few
    clusters hold the rarer of hits and misses, but no fewer than clusters that are all hits or all misses would be.
    That number itself is taken where the rarer outcome is in fewer than two clusters: there is no spread to see then,
    and `design` is that of whole clusters. A single cluster tells nothing of its own variance: its interval takes every
    try as independent, and is of that cluster alone.

    Exact for single tries. Covers at the nominal level, less half a point, where the shares of clusters follow a Beta
    law, from equal to all or none (measured for 3 to 144 clusters of one size; the page has a table). Does not where
    rare clusters are unlike all that were seen: no interval can that is narrower than as many tries as clusters.
    NaN for no tries. Raises BadRequest for lengths that differ or a level outside (0, 1).
    """
    if hits.shape != cluster.shape or not 0 < level < 1:
        raise BadRequest(f"expected one cluster per hit and a level in (0, 1), came {hits.shape}, {cluster.shape}")
    n = len(hits)
    if not n:
        return NOTHING
    _, at = np.unique(cluster, return_inverse=True)
    sizes, found = np.bincount(at).astype(np.float64), np.bincount(at, hits.astype(np.float64))
    p, number = float(hits.mean()), len(sizes)
    tries, design = (float(n), 1.0) if number == 1 else _tries(found, sizes, (1 + level) / 2)
    low, high = _clopper_pearson(p * tries, tries, 1 - level)
    return Share(p, low, high, n, number, design)


def _tries(hits: Float[np.ndarray, " c"], sizes: Float[np.ndarray, " c"], point: float) -> tuple[float, float]:
    """The effective number of tries of two clusters or more, and the design effect."""
    n, whole = float(sizes.sum()), worth(sizes)
    holding = min(worth(sizes[hits > 0]), worth(sizes[hits < sizes]))
    if holding < FEWEST:
        return whole, n / whole
    p = float(hits.sum()) / n
    design = max(1.0, variance_of_mean(hits, sizes) * (n - 1) / (p * (1 - p)))
    lost = special.stdtrit(n - 1, point) / special.stdtrit(holding - 1, point)
    return max(whole, n / design * float(lost) ** 2), design


def worth(sizes: Float[np.ndarray, " c"]) -> float:
    """(Σn_c)²/Σn_c²: how many clusters of one size these are worth; 0 for none (Kish)."""
    return float(sizes.sum() ** 2 / (sizes @ sizes)) if len(sizes) else 0.0


def variance_of_mean(sums: Float[np.ndarray, " c"], sizes: Float[np.ndarray, " c"]) -> float:
    """Variance of Σ sums / Σ sizes over clusters, each left out once (jackknife); two clusters or more.

    Unbiased for independent clusters of one size; of unlike sizes too large rather than too small.
    """
    n, number = float(sizes.sum()), len(sizes)
    left_out = (sums - float(sums.sum()) / n * sizes) / (1 - sizes / n)
    return (number - 1) / number * float(left_out @ left_out) / n**2


def _clopper_pearson(hits: float, tries: float, alpha: float) -> tuple[float, float]:
    low = 0.0 if hits <= 0 else float(stats.beta.ppf(alpha / 2, hits, tries - hits + 1))
    high = 1.0 if hits >= tries else float(stats.beta.ppf(1 - alpha / 2, hits + 1, tries - hits))
    return low, high


def exchange_p(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    strata: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]] | None = None,
    *,
    draws: int,
    seed: Seed,
) -> float:
    """Two-sided p of a difference of means, if members of one stratum (a layer) could as well change groups.

    Values are taken relative to the mean of their stratum, labels are shuffled within it, `draws` times. At least
    1/(draws + 1); NaN where a group is empty or no stratum holds members of both. Exact under exchange.
    Raises BadRequest if draws < 1.
    """
    if draws < 1:
        raise BadRequest(f"expected draws >= 1, got {draws}")
    values = np.concatenate([first, second])
    is_first = np.arange(len(values)) < len(first)
    stratum = np.zeros(len(values), int) if strata is None else np.concatenate(strata)
    parts = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    mixed = [at for at in parts if 0 < is_first[at].sum() < len(at)]
    if not mixed:
        return float("nan")
    at = np.concatenate(mixed)
    centred = np.concatenate([values[part] - values[part].mean() for part in mixed])
    number = is_first[at].sum()
    observed = abs(centred[is_first[at]].sum())
    rng, reached = generator(seed, "exchange"), 0
    starts = np.cumsum([0, *(len(part) for part in mixed)])
    counts = [int(is_first[part].sum()) for part in mixed]
    slack = 1e-12 * max(1.0, float(np.abs(centred).max()) * number)  # the same sum in another order
    for _ in range(draws):
        total = sum(rng.permutation(centred[starts[i] : starts[i + 1]])[:count].sum() for i, count in enumerate(counts))
        reached += abs(total) >= observed - slack
    return (1 + int(reached)) / (draws + 1)
