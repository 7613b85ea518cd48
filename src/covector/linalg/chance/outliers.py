"""Which of several places stands out: a robust z score, and how large its maximum is when none does.

The score is (x − median)/(1.4826·MAD): a few places out of line do not hide each other. Its largest absolute value over
n places has a law of its own, which for few places has a very heavy tail (five values: 5 % are beyond 8), so the
selection is repeated in the null: n independent values, scored the same way, the largest taken.

Source: `docs/theory/spectra.md`, equations 12 and 13.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from covector.axes import Float
from covector.linalg.chance.marchenko_pastur import tracy_widom_draws
from covector.linalg.chance.streams import Seed, generator

# MAD of a normal law in units of its standard deviation, inverted.
CONSISTENT = 1.482602218505602
# Fewer places than this have no usual value to stand out from.
FEWEST = 4
# Fewer layers than this leave too little of themselves when a line is taken off.
FEWEST_FOR_TREND = 6
# Draws per generator; fixed, so that a longer null begins with the shorter one.
BLOCK = 250

Law = Literal["normal", "largest value"]


def robust_z(x: Float[np.ndarray, "... n"], *, noise: float = 0.0) -> Float[np.ndarray, "... n"]:
    """(x − median)/(1.4826·MAD) along the last axis, in standard deviations of a normal law.

    NaN for fewer than four values, or where half of them are equal: lie within `noise` of their median. Values that
    are not finite are NaN and are not counted. Free of shift, and without noise of positive scale.
    """
    x = np.where(np.isfinite(x), x, np.nan)
    if x.shape[-1] < FEWEST or np.any(np.isfinite(x).sum(axis=-1) < FEWEST):
        return np.full(x.shape, np.nan)
    median = _middle(x)
    away = x - median[..., None]
    spread = CONSISTENT * _middle(np.abs(away))
    return np.divide(
        away, spread[..., None], out=np.full(x.shape, np.nan), where=spread[..., None] > CONSISTENT * noise
    )


def largest_z_null(sizes: Sequence[int], *, law: Law, draws: int, seed: Seed) -> Float[np.ndarray, " draws"]:
    """The largest |robust z| among Σ sizes independent places, by simulation; NaN for fewer than four places.

    `sizes`: how many places (heads) each layer has. `law` of one place: "normal" (a norm: a sum of many squares) or
    "largest value" (log σ₁ of random maps: Tracy–Widom's, with its longer upper tail). Both up to shift and scale,
    which the score does not see.
    """
    return _largest(lambda values: values, sum(sizes), sizes, law, draws, seed)


def largest_layer_z_null(
    sizes: Sequence[int], *, law: Law, draws: int, seed: Seed, at: Sequence[int] | None = None
) -> Float[np.ndarray, " draws"]:
    """The largest |robust z| among layers, each the median of its places; otherwise as `largest_z_null`.

    With `at`, where the layers are, their robust line is taken off first, in the null as in the data.
    """
    cuts = np.cumsum([0, *sizes])

    def layers(values: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws m"]:
        medians = np.stack([np.median(values[:, a:b], axis=1) for a, b in pairwise(cuts)], axis=1)
        return medians if at is None else without_trend(medians, at)

    return _largest(layers, len(sizes), sizes, law, draws, seed)


def without_trend(x: Float[np.ndarray, "... m"], at: Sequence[int]) -> Float[np.ndarray, "... m"]:
    """x less the line through it that has the median of all pairs' slopes (Theil and Sen), along the last axis.

    A few values out of line do not bend it. The height of the line does not matter to `robust_z`. Needs finite x and
    two different places or more.
    """
    place = np.asarray(at, dtype=np.float64)
    first, second = np.triu_indices(len(place), 1)
    apart = place[second] - place[first]
    first, second, apart = first[apart != 0], second[apart != 0], apart[apart != 0]
    slope = np.median((x[..., second] - x[..., first]) / apart, axis=-1)
    return x - slope[..., None] * place


def _largest(
    reduce: Callable[[np.ndarray], np.ndarray], n: int, sizes: Sequence[int], law: Law, draws: int, seed: Seed
) -> Float[np.ndarray, " draws"]:
    if n < FEWEST:
        return np.full(draws, np.nan)
    found = []
    for block in range(-(-draws // BLOCK)):
        rng = generator(seed, f"largest z {law} {'-'.join(map(str, sizes))}", block)
        shape = (BLOCK, sum(sizes))
        values = rng.standard_normal(shape) if law == "normal" else tracy_widom_draws(rng, shape)
        found.append(np.abs(robust_z(reduce(values))).max(axis=1))
    return np.concatenate(found)[:draws]


def _middle(x: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    return np.asarray(np.nanmedian(x, axis=-1) if np.isnan(x).any() else np.median(x, axis=-1))
