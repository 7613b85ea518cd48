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


def clustered_share(hits: Bool[np.ndarray, " n"], cluster: Int[np.ndarray, " n"], level: float = 0.95) -> Share:
    """The share of `hits`, with an interval that takes clusters, not single hits, for the independent pieces.

    The interval is Clopper's and Pearson's at the effective number of tries n / design, reduced further for the few
    clusters that the design effect was found from. A single cluster tells nothing of its own variance: its interval
    takes every try as independent. NaN for no tries. Covers at the nominal level or above; exact for single tries.
    Raises BadRequest for lengths that differ or a level outside (0, 1).
    """
    if hits.shape != cluster.shape or not 0 < level < 1:
        raise BadRequest(f"expected one cluster per hit and a level in (0, 1), came {hits.shape}, {cluster.shape}")
    n = len(hits)
    if not n:
        return NOTHING
    p = float(hits.mean())
    _, at = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(at)
    number, design, tries = len(sizes), 1.0, float(n)
    if number > 1 and 0 < p < 1:
        misses = np.bincount(at, hits.astype(np.float64)) - p * sizes
        variance = number / (number - 1) * float(misses @ misses) / n**2
        design = max(1.0, variance * (n - 1) / (p * (1 - p)))
    if number > 1:
        lost = special.stdtrit(n - 1, (1 + level) / 2) / special.stdtrit(number - 1, (1 + level) / 2)
        tries = n / design * min(1.0, float(lost)) ** 2
    low, high = _clopper_pearson(p * tries, tries, 1 - level)
    return Share(p, low, high, n, number, design)


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
