"""Two arms on the same seeds: is one better, by how much, and how sure is that?

Source: `docs/theory/rollouts.md`, equations 1–7; Fisher 1935 (sign flips), McNemar 1947, Tango, Statistics in
Medicine 17 (1998) for the interval of a difference of paired shares.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom

from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg.chance.estimate import Estimate
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.trials.crossing import crossing
from covector.linalg.trials.resample import BLOCK, DRAWS, LEVEL, ROUNDING, finite, in_range, mean_interval

# All signs are tried for up to this many differences that are not zero.
ENUMERATED = 14
# Whole numbers have an exact law by convolution, as long as their sizes sum to no more than this.
LATTICE = 20_000
# Ratios this near to whole numbers are whole, up to the rounding of differences.
WHOLE = 1e-9


@dataclass(frozen=True, eq=False)
class Paired:
    """Differences of two arms over `n` seeds: `mean`, `sd`, BCa ends `low` and `high`, two-sided `p` of sign flips.

    Each is an array of the batch's shape, in the unit of the values; `p_error` is the standard error that simulation
    leaves on p, 0 where p is exact.
    """

    n: int
    mean: Float[np.ndarray, "*batch"]
    sd: Float[np.ndarray, "*batch"]
    low: Float[np.ndarray, "*batch"]
    high: Float[np.ndarray, "*batch"]
    p: Float[np.ndarray, "*batch"]
    p_error: Float[np.ndarray, "*batch"]


def paired_difference(
    differences: Float[np.ndarray, "*batch n"], *, draws: int = DRAWS, seed: Seed = 0, level: float = LEVEL
) -> Paired:
    """Summary of differences (arm less clean, seed by seed); rows are arms or measures.

    p is exact if each difference is as likely with the other sign (equation 2), the interval is approximate (equation
    5). An arm that equals the clean one in every episode has mean 0, an interval of no width and p = 1. `sd` divides by
    n − 1, NaN for one seed. Raises BadRequest for no seeds, values that are not finite, draws < 1, or a level outside
    (0, 1).
    """
    low, high = mean_interval(differences, draws=draws, seed=seed, level=level)
    found = sign_flip_p(differences, draws=draws, seed=seed)
    n, mean = differences.shape[-1], differences.mean(axis=-1)
    sd = differences.std(axis=-1, ddof=1) if n > 1 else np.full(mean.shape, np.nan)
    return Paired(n, *(np.asarray(x, np.float64) for x in (mean, sd, low, high, found.value, found.error)))


def sign_flip_p(differences: Float[np.ndarray, "*batch n"], *, draws: int = DRAWS, seed: Seed = 0) -> Estimate:
    """Two-sided p that the labels of the two arms mean nothing: |sum| under random signs (equations 1 and 2).

    Exact for up to 14 differences that are not zero (all signs) and for whole multiples of 1 or of the smallest, if
    their sizes sum to 20,000 units or less (equation 3; successes are McNemar's exact test); else (1 + #)/(1 + draws),
    with the same signs for every row, and its standard error. Ties count, up to rounding. 1 where nothing differs.
    Where the null is a mean of 0 and differences are not symmetric, the size is right in the limit of many seeds.
    Raises BadRequest as `paired_difference`.
    """
    in_range(draws, LEVEL)
    finite(differences)
    rows = differences.reshape(-1, differences.shape[-1])
    p, error = np.ones(len(rows)), np.zeros(len(rows))
    left = []
    for i, row in enumerate(rows):
        moved = row[row != 0]
        whole = _whole(moved)
        if whole is not None:
            p[i] = _lattice_p(whole)
        elif len(moved) <= ENUMERATED:
            p[i] = _enumerated_p(moved)
        else:
            left.append(i)
    if left:
        p[left] = _drawn_p(rows[left], draws, seed)
        error[left] = np.sqrt(p[left] * (1 - p[left]) / draws)
    shape = differences.shape[:-1]
    return Estimate(p.reshape(shape), error.reshape(shape), draws if left else 0)


def _whole(moved: Float[np.ndarray, " n"]) -> np.ndarray | None:
    """The differences as whole numbers of one unit (1, or the smallest), if there are not too many of them."""
    if not len(moved):
        return np.zeros(0, dtype=np.int64)
    unit = 1.0 if np.all(moved == np.rint(moved)) else float(np.abs(moved).min())
    steps = np.abs(moved / unit)
    if np.any(np.abs(steps - np.rint(steps)) > WHOLE) or steps.max() > 2**52:
        return None
    whole = np.rint(moved / unit).astype(np.int64)
    whole //= np.gcd.reduce(whole)
    return whole if np.abs(whole).sum(dtype=np.float64) <= LATTICE else None


def _lattice_p(whole: np.ndarray) -> float:
    """Of S = Σ ±|dᵢ| = 2·(sum of those with +) − Σ|dᵢ|."""
    total = int(np.abs(whole).sum())
    law = np.zeros(total + 1)
    law[0] = 1.0
    for size, alike in groupby(sorted(np.abs(whole).tolist())):
        many = len(list(alike))
        weights = binom.pmf(np.arange(many + 1), many, 0.5)
        old, law = law, np.zeros(total + 1)
        for j, weight in enumerate(weights):
            law[j * size :] += weight * old[: total + 1 - j * size]
    sums = 2 * np.arange(total + 1) - total
    return float(min(1.0, law[np.abs(sums) >= abs(int(whole.sum()))].sum()))


def _enumerated_p(moved: Float[np.ndarray, " n"]) -> float:
    n = len(moved)
    if n == 0:
        return 1.0
    # The first sign stays: turning all of them changes no size.
    signs = 1.0 - 2.0 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n - 1)) & 1)
    null = np.abs(moved[0] + signs @ moved[1:])
    return float(np.mean(null >= abs(moved.sum()) - ROUNDING * np.abs(moved).sum()))


def _drawn_p(rows: Float[np.ndarray, "r n"], draws: int, seed: Seed) -> Float[np.ndarray, " r"]:
    least = np.abs(rows.sum(axis=1)) - ROUNDING * np.abs(rows).sum(axis=1)
    reached = np.zeros(len(rows), dtype=np.int64)
    for block, first in enumerate(range(0, draws, BLOCK)):
        bits = generator(seed, "trials signs", block).integers(2, size=(BLOCK, rows.shape[1]), dtype=np.int8)
        signs = 1.0 - 2.0 * bits[: min(BLOCK, draws - first)]
        reached += np.sum(np.abs(rows @ signs.T) >= least[:, None], axis=1)
    return (1 + reached) / (1 + draws)


@dataclass(frozen=True)
class PairedShares:
    """Shares of n seeds on which each arm succeeds; `gained` are those of the second alone.

    `lost` are those of the first alone. `difference` = second − first with its interval; `p`, exact and two-sided, that
    gains and losses are equally likely.
    """

    n: int
    first: float
    second: float
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float


def paired_shares(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"], level: float = LEVEL) -> PairedShares:
    """Compare two arms by successes on the same seeds: McNemar's exact p, Tango's score interval (equations 6 and 7).

    The interval holds also where no seed differs, where a bootstrap has no width: ± z²/(n + z²). It covers near the
    level at all n, not exactly. Raises BadRequest for lengths that differ, no seeds, or a level outside (0, 1).
    """
    n = len(first)
    if n == 0 or first.shape != second.shape or not 0 < level < 1:
        raise BadRequest(
            f"expected the same seeds in both arms and a level in (0, 1), came {n} and {len(second)} at {level:g}"
        )
    gained, lost = int(np.sum(second & ~first)), int(np.sum(first & ~second))
    p = float(sign_flip_p(second.astype(np.float64) - first.astype(np.float64)).value)
    low, high = share_interval(gained, lost, n, level)
    return PairedShares(
        n, float(first.mean()), float(second.mean()), gained, lost, (gained - lost) / n, low, high, p
    )  # fmt: skip


def share_interval(gained: int, lost: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The differences of shares Δ that Tango's score test does not reject (equation 7)."""
    z, found = float(ndtri((1 + level) / 2)), (gained - lost) / n

    def score(delta: float) -> float:
        b = (2 * n - gained + lost) * delta - gained - lost
        c = -lost * delta * (1 - delta)
        q = (np.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        distance = gained - lost - n * delta
        # Beyond any quantile where the variance vanishes, at the ends of the range.
        return float(np.clip(distance / np.sqrt(max(variance, 1e-300)), -1e6, 1e6))

    low = -1.0 if found <= -1 else crossing(lambda x: score(x) - z, -1 + 1e-14, found, 1e-13)
    high = 1.0 if found >= 1 else crossing(lambda x: score(x) + z, found, 1 - 1e-14, 1e-13)
    return low, high
