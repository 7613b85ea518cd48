"""Sweeps over many directions: what a gradient says of random changes of equal output, and how honest its order is.

Source: `docs/theory/edits.md`, equations 23–25.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.linalg.chance.beta import tail
from covector.linalg.chance.clustered import Share, clustered_share
from covector.linalg.chance.haar import haar_directions
from covector.linalg.chance.streams import Seed, generator

BOOTSTRAPS = 1000


def equal_output_p(
    effects: Float[np.ndarray, " r"],
    reads: Float[np.ndarray, "r n"],
    gradient: Float[np.ndarray, "n m"],
    second: Float[np.ndarray, "n n"],
    *,
    draws: int,
    seed: Seed,
) -> Float[np.ndarray, " r"]:
    """How often a random rank-one change of the same matrix with the same E‖Δoutput‖² does as much, to first order.

    The change of direction i is rᵢᵀvᵢ with unit vᵢ; `reads` are the rᵢ, `second` is E[xᵀx] of what the matrix reads,
    `effects` are ⟨G, rᵢᵀvᵢ⟩. A random change takes u and w uniform on the spheres, scaled to rᵢ's E(x·rᵢ)². Over w the
    tail is exact, over u it is the mean of `draws` and of the direction's own rᵢ: a valid p at any number of draws,
    without a floor (equation 23). 1 where there is no output or no gradient.
    """
    n, m = gradient.shape
    u = haar_directions(draws, n, seed)
    spread = _reach(u, gradient, second)
    own = _reach(reads, gradient, second)
    size = output_sizes(reads, second)
    found = np.ones(len(effects))
    for i in np.flatnonzero((size > 0) & (own > 0)):
        ratio = abs(effects[i]) / size[i]
        cosines = ratio / np.append(spread, own[i])
        # The direction's own ratio is a cosine by construction, up to rounding.
        cosines[-1] = min(cosines[-1], 1.0)
        reached = np.where(cosines <= 1.0, tail(np.minimum(cosines, 1.0), m), 0.0)
        found[i] = float(np.mean(reached))
    return found


def output_sizes(reads: Float[np.ndarray, "r n"], second: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " r"]:
    """√E(x·r)² of each row r: the root mean square of what a change rᵀv with unit v adds to the output."""
    return np.sqrt(np.maximum(np.sum((reads @ second) * reads, axis=1), 0.0))


def _reach(u: np.ndarray, gradient: np.ndarray, second: np.ndarray) -> np.ndarray:
    """‖uG‖ / √E(x·u)²: the most that a change reading u can do for its output."""
    size = output_sizes(u, second)
    slope = np.linalg.norm(u @ gradient, axis=1)
    return np.divide(slope, size, out=np.zeros_like(slope), where=size > 0)


@dataclass(frozen=True)
class Honesty:
    """How well a cheap order finds the largest: rank correlation with its interval, and what the first N left out.

    ``missed`` is the share of the others whose effect is beyond the median of the first N.
    """

    correlation: float
    low: float
    high: float
    missed: Share


def honesty(
    order: Float[np.ndarray, " k"], measured: Float[np.ndarray, " k"], first: int, others: int, seed: Seed
) -> Honesty:
    """Judge |order| against |measured|: the `first` values are the top of all, the rest a random sample of `others`.

    Spearman's correlation over everything, sampled ones counted others / sample times each; 95 % interval by bootstrap
    of the sample (the top is no sample). NaN without a sample.
    """
    a, b, sample = np.abs(order), np.abs(measured), len(order) - first
    nothing = float("nan")
    if sample < 3 or first < 1:
        return Honesty(nothing, nothing, nothing, clustered_share(np.zeros(0, dtype=bool), np.zeros(0, dtype=int)))
    weight = np.concatenate([np.ones(first), np.full(sample, others / sample)])
    rng = generator(seed, "sweep honesty")
    drawn = []
    for _ in range(BOOTSTRAPS):
        pick = np.concatenate([np.arange(first), first + rng.integers(sample, size=sample)])
        drawn.append(rank_correlation(a[pick], b[pick], weight))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    hits = b[first:] > np.median(b[:first])
    return Honesty(rank_correlation(a, b, weight), float(low), float(high), clustered_share(hits, np.arange(sample)))


def rank_correlation(x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"], weight: Float[np.ndarray, " k"]) -> float:
    """Spearman's correlation of weighted values: of the share of the weight below each, ties at their middle."""
    a, b = _ranks(x, weight), _ranks(y, weight)
    total = weight.sum()
    a, b = a - (weight @ a) / total, b - (weight @ b) / total
    size = float(np.sqrt((weight @ a**2) * (weight @ b**2)))
    return float(weight @ (a * b)) / size if size else float("nan")


def _ranks(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    values, place = np.unique(x, return_inverse=True)
    held = np.bincount(place, weight, minlength=len(values))
    return (np.cumsum(held) - held / 2)[place]


def effective_number(parts: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """exp(H) of |parts| as shares of their sum: n for equal parts, 1 where one has all; NaN where all are 0.

    Source: theory page Q5(d).
    """
    size = np.abs(parts)
    total = size.sum(axis=-1, keepdims=True)
    share = np.divide(size, total, out=np.full_like(size, np.nan), where=total > 0)
    terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0.0)
    return np.asarray(np.where(total[..., 0] > 0, np.exp(-terms.sum(axis=-1)), np.nan))


def off_diagonal(K: Float[np.ndarray, "*batch k k"]) -> Float[np.ndarray, "*batch"]:
    """Σ|K_ab| over a ≠ b as a share of Σ|K_ab|: 0 where nothing crosses, (k − 1)/k where all is alike."""
    size = np.abs(K)
    whole = size.sum(axis=(-2, -1))
    own = np.diagonal(size, axis1=-2, axis2=-1).sum(axis=-1)
    return np.asarray(np.divide(whole - own, whole, out=np.full_like(whole, np.nan), where=whole > 0))


def share_of_size(gains: Float[np.ndarray, " r"], wanted: float, order: np.ndarray) -> Float[np.ndarray, " r"]:
    """ε ≤ 0 that removes dyads in this order until Σε²σ² = `wanted`, the last one in part; all if there is not enough.

    So that sets of dyads have the same ‖ΔM‖_F.
    """
    epsilon, left = np.zeros(len(gains)), wanted
    for i in order.tolist():
        power = float(gains[i] ** 2)
        if left <= 0 or power <= 0:
            continue
        epsilon[i] = -min(1.0, np.sqrt(left / power))
        left -= epsilon[i] ** 2 * power
    return epsilon
