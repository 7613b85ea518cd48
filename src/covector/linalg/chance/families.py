"""Many tests at once: error rates over a family of p-values, or over a family of statistics with a joint null.

BH holds the false discovery rate for independent or positively dependent tests, BY for any, Holm the chance of a
single false claim for any. Max-T (Westfall–Young) holds that chance too and uses the joint null, so correlated
tests cost little.

Source: Benjamini–Hochberg 1995, Benjamini–Yekutieli 2001, Holm 1979, Simes 1986, Westfall–Young 1993 (algorithm 2.8
for the step-down form).
"""

from collections.abc import Callable

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest

P = Float[np.ndarray, "*shape"]
Ranks = Float[np.ndarray, " n"]


def bh(p: P) -> P:
    """Benjamini–Hochberg adjusted values q, in the shape of p: rejecting q <= α keeps the false discovery rate at α.

    All finite entries are one family; NaN (not defined) is left out of it and stays NaN. Exact arithmetic on p.
    Raises BadRequest if a p lies outside [0, 1].
    """
    return _step_up(p, np.ones_like)


def by(p: P) -> P:
    """Benjamini–Yekutieli adjusted values: `bh` under any dependence, dearer by Σ 1/i over the family.

    Shape, NaN and errors as for `bh`.
    """
    return _step_up(p, lambda ranks: np.full(ranks.shape, np.sum(1 / ranks)))


def holm(p: P) -> P:
    """Holm adjusted values: rejecting those <= α makes any false claim with probability at most α.

    Under any dependence. Shape, NaN and errors as for `bh`.
    """
    adjusted, finite, order = _sorted_family(p)
    ranks = np.arange(1, len(order) + 1)
    stepped = np.maximum.accumulate((len(order) - ranks + 1) * adjusted[finite][order])
    return _placed(adjusted, finite, order, stepped)


def simes(p: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """Simes' p of the hypothesis that nothing is in the family, one per last axis: min over i of n·p₍ᵢ₎/i.

    The first stage of a two-stage search (one p per matrix, then BH over matrices). NaN entries are left out; a
    family of NaN only gives NaN. Valid under the conditions of `bh`. Raises BadRequest if a p lies outside [0, 1].
    """
    _check(p)
    ordered = np.sort(p, axis=-1)  # NaN last
    ranks = np.arange(1, p.shape[-1] + 1)
    counted = np.sum(~np.isnan(p), axis=-1, keepdims=True)
    scaled = np.where(np.isnan(ordered), np.inf, ordered * counted / ranks)
    least = np.minimum(scaled.min(axis=-1, initial=np.inf), 1.0)
    return np.asarray(np.where(counted[..., 0] > 0, least, np.nan))


def max_t(
    observed: Float[np.ndarray, " n"], null: Float[np.ndarray, "draws m"], *, step_down: bool = True
) -> Float[np.ndarray, " n"]:
    """Westfall–Young adjusted p of statistics whose joint null is given: large values are evidence.

    `null[b]` are all n = m statistics in draw b, made together, so their dependence is kept. Returns adjusted p in
    [1/(draws + 1), 1]: single step compares with the maximum over all tests; step-down (default, never larger) with
    the maximum over tests no more extreme. Unchanged by one monotone transform of everything (SV-33); statistics of
    different scales must be brought to one first (their own p, or ζ). NaN in `observed` is left out and stays NaN.
    Memory: one copy of `null`. Raises BadRequest if shapes disagree, draws are missing, or `null` holds NaN.
    """
    if null.ndim != 2 or null.shape[1:] != observed.shape or len(null) == 0 or np.isnan(null).any():
        raise BadRequest(
            f"max-T wants null draws [draws, {len(observed)}] without NaN, got {null.shape}; one column per test"
        )
    finite = np.flatnonzero(~np.isnan(observed))
    adjusted = np.full(observed.shape, np.nan)
    if len(finite) == 0:
        return adjusted
    rising = finite[np.argsort(observed[finite], kind="stable")]
    largest = np.maximum.accumulate(null[:, rising], axis=1)  # column j: maximum over tests no more extreme than j
    if not step_down:
        largest = np.broadcast_to(largest[:, -1:], largest.shape)
    reached = (largest >= observed[rising]).sum(axis=0)
    p = (1 + reached) / (len(null) + 1)
    # A test may not be more significant than one that is more extreme: running maximum from the top down.
    adjusted[rising] = np.maximum.accumulate(p[::-1])[::-1]
    return adjusted


def _step_up(p: P, price: Callable[[Ranks], Ranks]) -> P:
    adjusted, finite, order = _sorted_family(p)
    ranks = np.arange(1, len(order) + 1)
    scaled = adjusted[finite][order] * price(ranks.astype(float)) * len(order) / ranks
    return _placed(adjusted, finite, order, np.minimum.accumulate(scaled[::-1])[::-1])


def _sorted_family(p: P) -> tuple[P, Bool[np.ndarray, "*shape"], Int[np.ndarray, " n"]]:
    _check(p)
    values = np.array(p, dtype=np.float64)
    finite = ~np.isnan(values)
    return values, finite, np.argsort(values[finite], kind="stable")


def _placed(
    values: P, finite: Bool[np.ndarray, "*shape"], order: Int[np.ndarray, " n"], stepped: Float[np.ndarray, " n"]
) -> P:
    family = np.empty(len(order))
    family[order] = np.minimum(stepped, 1.0)
    values[finite] = family
    return values


def _check(p: P) -> None:
    if np.any((p < 0) | (p > 1)):
        raise BadRequest(f"p-values lie in [0, 1], got {np.nanmin(p):g} to {np.nanmax(p):g}; pass p, not a statistic")
